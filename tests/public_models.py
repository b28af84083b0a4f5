"Shapes of current text models up to 40 billion parameters: name → (config.json, as far as it decides about memory; where it was read)"
HF = 'https://huggingface.co/{}/raw/main/config.json'.format
CLASS = 'defaults of the config class in transformers 5.23.0, made for {}; the checkpoint may differ'.format

def shape(kind, hidden, layers, heads, key_heads, inner, words, **more):
    return dict(model_type=kind, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=key_heads,
        intermediate_size=inner, vocab_size=words, **more)

SIGLIP = dict(model_type='siglip_vision_model', hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16,
    image_size=896, patch_size=14, vision_use_head=False)
def gemma3(**text): return dict(model_type='gemma3', mm_tokens_per_image=256, vision_config=SIGLIP, text_config=dict(model_type='gemma3_text', sliding_window=1024, **text))

PRESETS = ('Llama-3.1-8B', 'Llama-3.2-1B', 'Llama-3.2-3B', 'Mistral-7B-v0.3', 'Qwen2.5-0.5B', 'Qwen2.5-1.5B', 'Qwen2.5-3B', 'Qwen2.5-7B', 'Qwen2.5-14B', 'Qwen2.5-32B',
    'Qwen3-0.6B', 'Qwen3-1.7B', 'Qwen3-4B', 'Qwen3-8B', 'Qwen3-14B', 'Qwen3-32B', 'Gemma-2-9B', 'Gemma-3-1B', 'SmolLM2-1.7B', 'Granite-3.1-8B',
    'SmolLM3-3B', 'Qwen3-30B-A3B', 'gpt-oss-20b', 'GLM-4-9B', 'Phi-4', 'Falcon3-10B', 'Yi-1.5-34B') # Their sources are in assets/models.json

OTHERS = { # Name → (config, source)
    'gemma-3-4b-it': (gemma3(hidden_size=2560, intermediate_size=10240, num_hidden_layers=34), HF('google/gemma-3-4b-it')),
    'gemma-3-12b-it': (gemma3(hidden_size=3840, intermediate_size=15360, num_hidden_layers=48, num_attention_heads=16, num_key_value_heads=8, head_dim=256, vocab_size=262208),
        HF('google/gemma-3-12b-it')),
    'Mistral-Small-3.1-24B': (dict(model_type='mistral3', text_config=shape('mistral', 5120, 40, 32, 8, 32768, 131072, head_dim=128)),
        'https://huggingface.co/mistralai/Mistral-Small-3.1-24B-Instruct-2503/raw/68faf511d618ef198fef186659617cfd2eb8e33a/config.json'),
    'OLMo-2-32B': (shape('olmo2', 5120, 64, 40, 8, 27648, 100352),
        'https://huggingface.co/allenai/OLMo-2-0325-32B/raw/cc9d3cf9c7230b86ee6b84607b37db1c01e3f1ed/config.json'),
    'GLM-4.7-Flash': (shape('glm4_moe_lite', 2048, 47, 20, 20, 10240, 154880, n_routed_experts=64, n_shared_experts=1, num_experts_per_tok=4, moe_intermediate_size=1536,
        first_k_dense_replace=1, kv_lora_rank=512, q_lora_rank=768, qk_nope_head_dim=192, qk_rope_head_dim=64, v_head_dim=256),
        'github.com/ai-dynamo/aiconfigurator@19d098a, src/aiconfigurator/model_configs/zai-org--GLM-4.7-Flash_config.json'),
    'olmo2': (dict(model_type='olmo2'), CLASS('allenai/OLMo-2-1124-7B')),
    'olmo3': (dict(model_type='olmo3'), CLASS('allenai/Olmo-3-7B-Instruct')),
    'ernie4_5': (dict(model_type='ernie4_5'), CLASS('baidu/ERNIE-4.5-0.3B-PT')),
    'seed_oss': (dict(model_type='seed_oss'), CLASS('ByteDance-Seed/Seed-OSS-36B-Instruct')),
    'arcee': (dict(model_type='arcee'), CLASS('arcee-ai/AFM-4.5B')),
    'apertus': (dict(model_type='apertus'), CLASS('swiss-ai/Apertus-8B-Instruct-2509')),
    'starcoder2': (dict(model_type='starcoder2'), CLASS('bigcode/starcoder2-7b')),
    'stablelm': (dict(model_type='stablelm'), CLASS('stabilityai/stablelm-3b-4e1t'))}
