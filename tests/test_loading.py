"The two bitsandbytes faults on a CPU, each shown without its guard and absent with it, and adapters that compute what plain torch computes"
from types import SimpleNamespace as S
import bitsandbytes as bnb, pytest, tiny, torch
from huggingface_hub import errors
from peft import get_peft_model
from requests import Response
from qlora_nb.errors import QLoRAError
from qlora_nb.training.loading import _refused, guard, load_base, load_tokenizer, model_source, upcast_adapters
from qlora_nb.methods.lora import lora_config

LORA = S(r=8, lora_alpha=16, lora_dropout=0., use_rslora=False, use_dora=False, init_lora_weights=True, target_modules='all-linear')
def config(bits=4, double=True, kind='nf4'):
    q = S(bits=bits, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double)
    return S(training=S(max_length=64), quantization=q, revision=None, trust_remote_code=False, lora=LORA)

both = pytest.mark.parametrize('compute', ['bfloat16', 'float32']) # Whichever of them this CPU would take

def repacks(): # does this CPU take bitsandbytes' repacking path?
    l = bnb.nn.Linear4bit(64, 64, quant_type='nf4')
    return getattr(l, 'support_avx512bf16_for_cpu', False)

def adapted(folder, guarded=True, compute='bfloat16'):
    base = load_base(folder, config(), tiny.cpu(), compute)
    if not guarded:
        for m in base.modules():
            if isinstance(m, bnb.nn.Linear4bit): m.support_avx512bf16_for_cpu = True
    torch.manual_seed(1)
    model = get_peft_model(base, lora_config(LORA, base))
    upcast_adapters(model)
    for n,p in model.named_parameters():
        if 'lora_B' in n: torch.nn.init.normal_(p, std=.02)
    return model

def gradients(model):
    model.zero_grad()
    x = torch.arange(3, 99)[None]
    model.train()(input_ids=x, labels=x, use_cache=False).loss.backward()
    return {n: p.grad.clone() for n,p in model.named_parameters() if p.grad is not None}

def evaluated(model):
    with torch.no_grad(): model.eval()(input_ids=torch.arange(3, 35)[None], use_cache=False)
    return model

@both
def test_an_evaluation_pass_changes_no_gradient(folder, compute):
    model = adapted(folder, compute=compute)
    before,after = gradients(model),gradients(evaluated(model))
    assert all(torch.equal(before[k], after[k]) for k in before)

@pytest.mark.skipif(not repacks(), reason='this CPU has no AVX512-BF16, so bitsandbytes does not repack')
def test_without_the_guard_an_evaluation_pass_breaks_the_gradients(folder):
    model = adapted(folder, guarded=False)
    before,after = gradients(model),gradients(evaluated(model))
    assert any(not torch.allclose(before[k], after[k], rtol=.1) for k in before), 'the guard may no longer be needed'

@both
def test_every_adapter_learns_from_the_first_step(folder, compute):
    model = get_peft_model(load_base(folder, config(), tiny.cpu(), compute), lora_config(LORA))
    upcast_adapters(model)
    grads = {n: g for n,g in gradients(model).items() if 'lora_B' in n}
    assert len(grads)==14 and all(bool(g.any()) and bool(g.isfinite().all()) for g in grads.values())

def plain(model):
    "The same model in plain torch: each 4-bit layer replaced by a Linear with its dequantised weight"
    for parent in list(model.modules()):
        for name,m in list(parent.named_children()):
            if not isinstance(m, bnb.nn.Linear4bit): continue
            w = bnb.functional.dequantize_4bit(m.weight.data, m.weight.quant_state).to(torch.float32)
            l = torch.nn.Linear(m.in_features, m.out_features, bias=False)
            l.weight = torch.nn.Parameter(w, requires_grad=False)
            setattr(parent, name, l)
    assert not any(isinstance(m, bnb.nn.Linear4bit) for m in model.modules())
    return model

def test_adapter_gradients_equal_plain_torch_on_the_same_weights(folder):
    a = adapted(folder, compute='float32')
    ours = gradients(evaluated(a))
    theirs = gradients(plain(adapted(folder, compute='float32')))
    worst = max(((ours[k]-theirs[k]).norm()/theirs[k].norm()).item() for k in theirs if k in ours)
    print(f'largest relative error of an adapter gradient: {worst:.1e}')
    assert ours.keys()==theirs.keys() and worst<1e-4

def test_a_width_that_the_cpu_kernel_gets_wrong_is_refused():
    with pytest.raises(QLoRAError, match='96 wide. On a CPU, 4-bit layers need a multiple of 64'): guard(torch.nn.Sequential(bnb.nn.Linear4bit(96, 64)))

def nf4_reference(w, blocksize=64):
    "Blocks of the flat weight, scaled by their absolute maximum, to the nearest code"
    code = bnb.functional.get_4bit_type('nf4', device='cpu')
    blocks = w.flatten().split(blocksize)
    return torch.cat([code[(b[:, None]/b.abs().max()-code).abs().argmin(1)]*b.abs().max() for b in blocks]).view_as(w)

def wrong_share(width):
    torch.manual_seed(0)
    w = torch.randn(64, width)
    q,state = bnb.functional.quantize_4bit(w, blocksize=64, quant_type='nf4')
    return ((bnb.functional.dequantize_4bit(q, state)-nf4_reference(w)).abs()>1e-2).float().mean().item()

def test_the_refused_widths_are_the_wrong_ones():
    assert wrong_share(64)==wrong_share(128)==wrong_share(576)==0
    if repacks(): assert wrong_share(96)>.2, 'the refusal may no longer be needed'

@both
@pytest.mark.parametrize('bits,kind', [(4, 'nf4'), (4, 'fp4'), (8, 'nf4'), ('none', 'nf4')])
def test_bits(folder, bits, kind, compute):
    base = load_base(folder, config(bits, kind=kind), tiny.cpu(), compute)
    layer = base.model.layers[0].self_attn.q_proj
    assert type(layer).__name__=={4: 'Linear4bit', 8: 'Linear8bitLt', 'none': 'Linear'}[bits]
    if bits==4: assert layer.weight.quant_state.quant_type==kind and layer.weight.quant_state.nested
    assert not base.config.use_cache

@pytest.mark.parametrize('name,said', [('/no/such/folder/x', 'cannot be loaded: it is neither a folder'), ('nobody/no-such-model', 'hub cannot be reached|cannot be loaded')])
def test_a_model_that_is_not_there(name, said, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(QLoRAError, match=said) as e: load_tokenizer(name)
    assert len(str(e.value).splitlines())==1

def test_a_folder_without_config_json(tmp_path):
    with pytest.raises(QLoRAError, match='there is no config.json in'): model_source(str(tmp_path))

def test_attention_only_takes_the_attention_layers(folder):
    lora = S(**{**vars(LORA), 'target_modules': 'attention-only'})
    assert lora_config(lora, load_base(folder, config(), tiny.cpu())).target_modules=={'q_proj', 'k_proj', 'v_proj', 'o_proj'}

def response(status):
    answer = Response()
    answer.status_code = status
    return answer

@pytest.mark.parametrize('cause,said', [(errors.GatedRepoError('401 Client Error', response=response(401)), 'm is gated: accept its terms on its hub page'),
    (errors.LocalEntryNotFoundError('x'), 'm is not on this machine and the hub cannot be reached. Use a folder or `demo`'), (None, 'm cannot be loaded: line 1'),
    (errors.RevisionNotFoundError('x', response=response(404)), "m has no revision 'v9'")])
def test_what_the_hub_answers(cause, said):
    "transformers wraps what it was told in an OSError of several lines"
    error = OSError('line 1\nline 2')
    error.__cause__ = cause
    e = _refused('m', error, 'v9')
    assert str(e).startswith(f'model: {said}') and len(str(e).splitlines())==1
