"Checkpoints as people have them: what cannot be trained is one line, what has no formula is traced, and experts lie in 4 bits"
import json
from types import SimpleNamespace as S

import pytest, tiny, torch, transformers
from safetensors.torch import load_file, save_file
from qlora_nb.errors import QLoRAError
from qlora_nb.facts.models import find, from_config
from qlora_nb.facts.skeleton import auto_class, class_config
from qlora_nb.methods.experts import experts_config
from qlora_nb.methods.lora import LORA, lora_config
from qlora_nb.methods.share import loaded_share, planned_share
from qlora_nb.methods.storage import own_note, storage
from qlora_nb.planning.planner import plan
from qlora_nb.planning.terms import count
from qlora_nb.quiet import quiet
from qlora_nb.tasks.causal_lm import CAUSAL_LM
from qlora_nb.training.loading import load_base, load_tokenizer, model_source
from qlora_nb.training.setup import base_notes

TEXT = dict(vocab_size=128, hidden_size=128, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2,
    head_dim=64, max_position_embeddings=256)
LINEAR = dict(linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=64, linear_value_head_dim=64)
SIGHT = dict(hidden_size=64, depth=2, num_heads=2, intermediate_size=128, out_hidden_size=128)
SIGLIP = dict(model_type='siglip_vision_model', hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
FEW = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
MODELS = dict(mixtral=TEXT | dict(num_local_experts=4), qwen3_moe=TEXT | FEW, gpt_oss=TEXT | dict(num_local_experts=4),
    llama4_text=TEXT | dict(num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=128, interleave_moe_layer_step=1, pad_token_id=0),
    qwen3_next=TEXT | FEW | LINEAR | dict(shared_expert_intermediate_size=64), smollm3=TEXT | dict(pad_token_id=0), glm4=TEXT | dict(pad_token_id=0),
    qwen3_5=dict(text_config=TEXT | LINEAR | dict(model_type='qwen3_5_text'), vision_config=SIGHT), gpt2=dict(vocab_size=128, n_embd=128, n_layer=4, n_head=2),
    gemma3=dict(text_config=TEXT | dict(model_type='gemma3_text'), vision_config=SIGLIP, mm_tokens_per_image=4),
    qwen3_vl=dict(text_config=TEXT | dict(model_type='qwen3_vl_text'), vision_config=SIGHT))
GEMMA4 = dict(text_config=TEXT | dict(model_type='gemma4_text'), vision_config=dict(SIGLIP, model_type='gemma4_vision'))

def cell(bits=4, kind='nf4', double=True):
    quantization = S(bits=bits, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double)
    return S(training=S(max_length=64), quantization=quantization, revision=None, trust_remote_code=False)

@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory):
    "Name of a model type → folder of a small one with random weights"
    made = {}
    def folder(kind):
        if kind in made: return made[kind]
        made[kind] = str(tmp_path_factory.mktemp(kind))
        torch.manual_seed(0)
        config = class_config(dict(model_type=kind, **MODELS[kind]))
        with quiet(): getattr(transformers, auto_class(config)).from_config(config, dtype=torch.float32).save_pretrained(made[kind])
        return made[kind]
    return folder

def loaded(folder, **kw):
    with quiet(): return load_base(folder, cell(**kw), tiny.cpu(), 'float32')

def refused(f, *args, **kw):
    with pytest.raises(QLoRAError) as e: f(*args, **kw)
    assert len(str(e.value).splitlines())==1
    return str(e.value)

NAMES = [(r'C:\models\llama', 'it is a Windows path, and there is no such folder on this machine.', None),
    ('https://huggingface.co/org/name', 'it is a web address.', 'org/name'), ('hf.co/org/name', 'it is a web address.', 'org/name'),
    ('https://huggingface.co/org/name/tree/main', 'it is a web address.', 'org/name'), ('https://example.com/x', 'it is a web address.', None),
    ('“org/name”', 'it is in quotes (“ ”) that YAML does not know.', 'org/name'), ('llama3:8b', 'it is a name of Ollama, whose files cannot be trained.', 'Llama-3-8B'),
    ('org/name\u00a0', 'it holds an invisible character (U+00A0).', 'org/name'), ('org/\u200bname', 'it holds an invisible character (U+200B).', 'org/name'),
    ('a/b/c', 'it is neither a folder with a config.json nor a hub id such as meta-llama/Llama-2-7b-hf.', None)]

@pytest.mark.parametrize('name,why,meant', NAMES)
def test_what_is_no_hub_id_is_named_with_the_id_that_was_meant(name, why, meant):
    hint = f' Did you mean {meant!r}?' if meant else ''
    wanted = ' '.join(f'model: {name!r} cannot be loaded: {why}{hint}'.split())
    assert refused(find, name)==refused(model_source, name)==refused(load_tokenizer, name)==wanted

def test_a_folder_that_holds_no_model(tmp_path):
    (tmp_path/'adapter_config.json').write_text('{"base_model_name_or_path": "org/base"}')
    wanted = f'model: {tmp_path} is an adapter of org/base, not a model: give `model: org/base`'
    assert refused(find, tmp_path)==refused(model_source, str(tmp_path))==wanted
    (tmp_path/'config.json').write_text('[]')
    wanted = f'model: {tmp_path}/config.json holds no settings but a list: it is not the config of a model'
    assert refused(find, tmp_path)==refused(model_source, str(tmp_path))==wanted

def of(folder, change):
    "A copy of a Llama whose tensors went through `change`"
    tiny.model_folder(folder)
    file = folder/'model.safetensors'
    save_file(change(load_file(file)), file, metadata=dict(format='pt'))
    return str(folder)

@pytest.mark.parametrize('bits', [4, 8, 'none'])
def test_a_checkpoint_that_lacks_a_layer_is_refused(tmp_path, bits):
    folder = of(tmp_path, lambda w: {k: v for k,v in w.items() if '.layers.1.' not in k})
    said = refused(loaded, folder, bits=bits)
    assert f'the checkpoint of {folder} lacks model.layers.1.input_layernorm.weight and 8 more, which its config.json needs' in said

def test_a_head_counts_as_lacking_unless_it_is_tied(tmp_path):
    folder = of(tmp_path, lambda w: {k: v for k,v in w.items() if k!='lm_head.weight'})
    assert 'lacks lm_head.weight, which' in refused(loaded, folder, bits='none')
    config = json.loads((tmp_path/'config.json').read_text())
    (tmp_path/'config.json').write_text(json.dumps(config | dict(tie_word_embeddings=True)))
    assert loaded(folder, bits='none').lm_head.weight is not None

def test_a_tensor_of_another_shape(tmp_path):
    folder = of(tmp_path, lambda w: {k: v[:64].clone() if 'layers.1.self_attn.q_proj' in k else v for k,v in w.items()})
    assert f'tensors in the checkpoint of {folder} have other shapes than its config.json says' in refused(loaded, folder, bits='none')

@pytest.mark.parametrize('content,said', [(b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n', 'is a pointer of Git LFS, not the weights: run `git lfs pull` in its folder'),
    (None, 'is cut or damaged: copy or download it again'), (b'', 'is cut or damaged: copy or download it again')])
def test_weights_that_are_no_weights(tmp_path, content, said):
    tiny.model_folder(tmp_path)
    file = tmp_path/'model.safetensors'
    file.write_bytes(file.read_bytes()[:-10] if content is None else content)
    assert refused(loaded, str(tmp_path))==f'model: {file} {said}'

@pytest.mark.parametrize('method', ['gptq', 'awq', 'fp8', 'mxfp4', 'compressed-tensors'])
def test_a_checkpoint_quantised_by_others(tmp_path, method):
    tiny.model_folder(tmp_path)
    config = json.loads((tmp_path/'config.json').read_text())
    (tmp_path/'config.json').write_text(json.dumps(config | dict(quantization_config=dict(quant_method=method, bits=4))))
    said = f'is already quantised with {method.upper()}; QLoRA starts from the 16-bit checkpoint, which it quantises itself'
    assert said in refused(plan, f'model: {tmp_path}\ndata: {{train: demo}}') and said in refused(loaded, str(tmp_path))

@pytest.fixture
def own(tmp_path):
    "A checkpoint that bitsandbytes quantised, with its own compute dtype"
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float16)
    source = tiny.model_folder(tmp_path/'whole')
    with quiet(): transformers.AutoModelForCausalLM.from_pretrained(source, quantization_config=config).save_pretrained(tmp_path/'own')
    return str(tmp_path/'own')

def test_the_storage_of_a_bitsandbytes_checkpoint_holds(own):
    base = loaded(own, kind='fp4')
    layer = base.model.layers[0].self_attn.q_proj
    assert layer.weight.quant_state.quant_type=='nf4' and layer.compute_dtype==torch.float32
    assert own_note(own, cell(kind='fp4').quantization, base.config.to_dict())==(f'{own} is a quantised checkpoint, and its own storage holds: '
        'nf4 with double quantisation, not fp4 with double quantisation')
    text = f'model: {own}\ndata: {{train: demo}}\nquantization: {{bnb_4bit_quant_type: fp4}}'
    assert plan(text, gpu='T4').job.storage==storage('nf4') and any('its own storage holds' in note for note in plan(text, gpu='T4').notes)

def test_there_is_no_base_without_quantisation_in_a_quantised_checkpoint(own):
    said = f'quantization.bits: {own} is stored in 4 bits, so there is no base without quantisation: leave bits out, or take the 16-bit checkpoint'
    assert refused(loaded, own, bits='none')==said

def test_names_that_no_layer_bears(checkpoint):
    base = loaded(checkpoint('gpt2'), bits='none')
    said = refused(lora_config, LORA.settings(target_modules=('q_proj', 'c_attn')), base)
    assert said=="lora.target_modules: the model has no linear layer 'q_proj' to adapt; it has c_attn, c_proj, c_fc. Did you mean 'c_proj'?"

def trained(model):
    "Names of the adapted layers after a step, once each of them has a gradient"
    ids = torch.arange(3, 67)[None]
    model.train()
    model.gradient_checkpointing_enable({'use_reentrant': False})
    model.enable_input_require_grads()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    ends = {n: p for n,p in model.named_parameters() if 'lora_B' in n}
    assert all(p.grad is not None and bool(p.grad.any()) for p in ends.values())
    return {n.split('.lora_B')[0].rsplit('.', 1)[-1] for n in ends}

ATTENTION = {'q_proj', 'k_proj', 'v_proj', 'o_proj'}
DENSE = ATTENTION | {'gate_proj', 'up_proj', 'down_proj'}
SHAPES = [('mixtral', 1_835_008//2, .997, ATTENTION), ('qwen3_moe', 655_360, .996, ATTENTION), ('gpt_oss', 1_048_576, .997, ATTENTION), ('llama4_text', 1_245_184, .998, ATTENTION),
    ('qwen3_next', 821_248, .99, ATTENTION | {'in_proj_qkvz', 'in_proj_ba', 'out_proj', 'shared_expert_gate'}), ('smollm3', None, 1, DENSE),
    ('glm4', None, 1, ATTENTION | {'gate_up_proj', 'down_proj'}), ('gemma3', None, .89, DENSE), ('qwen3_vl', None, .88, DENSE), ('gpt2', None, 1, {'c_attn', 'c_proj', 'c_fc'}),
    ('qwen3_5', None, .99, DENSE | {'in_proj_qkv', 'in_proj_z', 'in_proj_a', 'in_proj_b', 'out_proj'})]

@pytest.mark.parametrize('kind,quantised,least,names', SHAPES)
def test_the_planned_share_is_the_loaded_share_to_the_byte_and_the_language_model_learns(checkpoint, kind, quantised, least, names):
    arch,base = find(checkpoint(kind)),loaded(checkpoint(kind))
    planned = planned_share(arch, storage('nf4'))
    assert planned==loaded_share(base) and planned.value>=least and planned.bytes>planned.quantised/2
    with quiet(): model = LORA.attach(base, LORA.settings(), CAUSAL_LM)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad)==count(LORA.tensors(arch, LORA.settings()))
    assert trained(model)==names and set(arch.linear_names)==names
    assert not any('vision' in n or 'visual' in n for n,p in model.named_parameters() if p.requires_grad)

@pytest.mark.parametrize('kind', ['mixtral', 'qwen3_moe', 'gpt_oss'])
def test_gradients_through_experts_in_4_bits_are_those_of_the_same_weights_in_32(checkpoint, kind):
    def adapted(base):
        torch.manual_seed(1)
        with quiet(): model = LORA.attach(base, LORA.settings(r=4), CAUSAL_LM)
        for n,p in model.named_parameters():
            if 'lora_B' in n: torch.nn.init.normal_(p, std=.02)
        trained(model)
        return {n: p.grad for n,p in model.named_parameters() if p.grad is not None and 'lora' in n}
    packed,plain = loaded(checkpoint(kind)),loaded(checkpoint(kind))
    for module in list(plain.modules()):
        for leaf in list(getattr(module, 'parametrizations', {})):
            value = getattr(module, leaf).detach().clone()
            torch.nn.utils.parametrize.remove_parametrizations(module, leaf, leave_parametrized=False)
            setattr(module, leaf, torch.nn.Parameter(value, requires_grad=False))
    assert not any(type(m).__name__=='Bnb4bitParametrization' for m in plain.modules())
    ours,theirs = adapted(packed),adapted(plain)
    assert ours.keys()==theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in theirs)

@pytest.mark.parametrize('kind', ['mixtral', 'qwen3_moe', 'gpt_oss'])
def test_8_bits_leave_the_experts_out_and_are_refused_before_and_after_loading(checkpoint, kind):
    folder = checkpoint(kind)
    before = refused(plan, f'model: {folder}\ndata: {{train: demo}}\nquantization: {{bits: 8}}', gpu='A100 80GB')
    after = refused(loaded, folder, bits=8)
    for said in (before, after):
        assert 'would be stored in 8 bits, since its experts are no linear layers; at least 50% must be. Use quantization.bits: 4, which stores experts too' in said
    assert loaded_share(loaded(folder, bits='none')).quantised==0

def test_the_compute_dtype_of_experts_is_that_of_the_model(checkpoint):
    with quiet(): config = experts_config(bnb_4bit_compute_dtype=torch.float32)
    assert config.load_in_4bit and loaded(checkpoint('mixtral')).model.layers[0].mlp.experts.down_proj.dtype==torch.float32

FORMULA = ('mixtral', 'qwen3_moe', 'gpt_oss', 'smollm3', 'glm4', 'gemma3', 'qwen3_vl', 'llama4_text')

@pytest.mark.parametrize('kind', FORMULA)
def test_what_has_a_formula_is_planned_by_it(kind):
    arch = from_config(dict(model_type=kind, **MODELS[kind]), kind)
    p = plan(arch, gpu='T4')
    assert p.engine=='formula' and p.largest and len(p.options)==3 and 'no formula' not in str(p)

@pytest.mark.parametrize('kind', [*(k for k in MODELS if k not in FORMULA), 'gemma4'])
def test_what_has_no_formula_is_planned_by_the_trace_and_says_so(kind):
    arch = from_config(dict(model_type=kind, **(MODELS | dict(gemma4=GEMMA4))[kind]), kind)
    p = plan(arch, gpu='T4')
    assert p.notes[0].startswith(f'Traced, no formula: a step of the real {kind} class was run') and p.engine=='trace' and p.verdict=='fits'
    for form in (str(p), p.to_markdown(), p._html()): assert 'Traced, no formula' in form
    assert f'{p.share.value:.1%}' in str(p) and p.to_dict()

def test_a_type_that_nobody_knows_gets_no_misleading_suggestion():
    said = refused(from_config, dict(model_type='mistrall', **TEXT), 'm')
    assert "m is a 'mistrall' model, which the installed transformers" in said and 'Did you mean' not in said

@pytest.mark.parametrize('initial', ['pissa', 'olora', True])
def test_before_is_the_true_base_where_the_start_changes_it(tmp_path, initial):
    from qlora_nb.results.evaluate import base_model
    folder = tiny.model_folder(tmp_path)
    section,ids = LORA.settings(init_lora_weights=initial),torch.arange(3, 35)[None]
    base = loaded(folder, bits='none')
    with torch.no_grad(): wanted = base(input_ids=ids).logits
    with quiet(): model = LORA.attach(base, section, CAUSAL_LM)
    config = cell(bits='none')
    config.model,config.method,config.section = folder,'lora',section
    run = tiny.ended(model=model, config=config, device=tiny.cpu(), precision=S(compute='float32'), data=S(task=CAUSAL_LM, model_settings={}))
    with torch.no_grad(), model.disable_adapter(): off = (model(input_ids=ids).logits-wanted).abs().max().item()
    with torch.no_grad(), base_model(run) as shown: now = (shown(input_ids=ids).logits-wanted).abs().max().item()
    assert now==0 and (off>1e-3)==(initial is not True)

EXPERTS_SAID = 'The experts (experts.down_proj, experts.gate_up_proj) are {}, frozen and without adapters: only linear layers get adapters.'

@pytest.mark.parametrize('bits,said', [(4, 'stored in 4 bits'), ('none', 'not quantised')])
def test_plan_and_run_say_once_that_experts_are_frozen(checkpoint, bits, said):
    folder = checkpoint('mixtral')
    notes = plan(f'model: {folder}\ndata: {{train: demo}}\nquantization: {{bits: {bits}}}', gpu='A100 80GB').notes
    assert notes.count(EXPERTS_SAID.format(said))==1
    config = cell(bits=bits)
    config.model = folder
    assert base_notes(config, loaded(folder, bits=bits)).count(EXPERTS_SAID.format(said))==1

def test_nothing_is_said_of_experts_where_there_are_none(checkpoint):
    assert not any('experts' in note for note in plan(f"model: {checkpoint('smollm3')}\ndata: {{train: demo}}", gpu='T4').notes)

@pytest.mark.parametrize('kind', ['mixtral', 'gpt_oss', 'llama4_text'])
def test_a_run_with_experts_from_cell_to_answer(checkpoint, tmp_path, monkeypatch, kind):
    "Trained, saved, resumed and asked, with dropout as it is by default"
    from qlora_nb.results.evaluate import generate
    from qlora_nb.training.start import resume, train
    monkeypatch.chdir(tmp_path)
    folder = checkpoint(kind)
    tiny.tokenizer().save_pretrained(folder)
    text = f'model: {folder}\ndata: {{train: rows}}\ntraining: {{max_steps: 2, save_steps: 1, max_length: 64}}\noutput: {{output_dir: {tmp_path}}}'
    run = train(text, dict(rows=tiny.rows(8)), name='experts')
    assert run.error is None and run.status=='finished' and len(run.losses)==2
    assert any(note.startswith('The base is quantised: 99.') for note in run.notes)
    assert run.notes.count(EXPERTS_SAID.format('stored in 4 bits'))==1
    assert not any('no plan' in note for note in run.notes)
    longer = resume('experts', text, dict(rows=tiny.rows(8)), extend='1')
    assert longer.error is None and longer.step==3 and isinstance(generate(longer, 'who', max_new_tokens=2), str)
