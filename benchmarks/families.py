"Tiny models of the families that came after 0.1.0, one for each arrangement of their layers: name → config.json"
BASE = dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=64, intermediate_size=384, vocab_size=1024,
    max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2)
FEW = dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=128)
LATENT = {k: v for k,v in BASE.items() if k!='head_dim'} | dict(num_key_value_heads=4,
    q_lora_rank=128, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
    n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=128, first_k_dense_replace=1)
GROUPED = LATENT | dict(n_group=2, topk_group=1)
GEMMA4 = BASE | dict(model_type='gemma4_text', global_head_dim=128, num_global_key_value_heads=1, hidden_size_per_layer_input=0,
    layer_types=['sliding_attention', 'full_attention']*2)
LLAMA4 = BASE | dict(model_type='llama4_text', num_local_experts=4, intermediate_size_mlp=512, no_rope_layer_interval=2)

TINY = {
    'smollm3': BASE, 'glm': BASE, 'glm4': BASE, 'gemma3_text': BASE,
    'mixtral': BASE | dict(num_local_experts=8), 'gpt_oss': BASE | dict(num_local_experts=8, num_experts_per_tok=2),
    'qwen3_moe': BASE | FEW | dict(norm_topk_prob=True),
    'qwen3_moe, every second layer dense': BASE | FEW | dict(model_type='qwen3_moe', decoder_sparse_step=2),
    'gemma4_text': GEMMA4, 'gemma4_text, keys as values': GEMMA4 | dict(attention_k_eq_v=True),
    'gemma4_text, wide heads': GEMMA4 | dict(attention_k_eq_v=True, global_head_dim=512),
    'gemma4_text, experts': GEMMA4 | dict(attention_k_eq_v=True, enable_moe_block=True, num_experts=8, top_k_experts=2, moe_intermediate_size=128),
    'llama4_text': LLAMA4, 'llama4_text, every second layer dense': LLAMA4 | dict(interleave_moe_layer_step=2, use_qk_norm=False),
    'deepseek_v2': LATENT, 'deepseek_v2, queries made directly': LATENT | dict(model_type='deepseek_v2', q_lora_rank=None),
    'deepseek_v3': GROUPED, 'deepseek_v3, halves rotated': GROUPED | dict(model_type='deepseek_v3', rope_interleave=False, attention_bias=True),
    'glm4_moe_lite': LATENT}
TINY = {name: dict(model_type=name) | config for name,config in TINY.items()}
