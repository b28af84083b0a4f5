"The reference layer against PEFT, for many shapes"
import pytest, torch
from hypothesis import given, settings, strategies as st
from peft import LoraConfig, get_peft_model
from qlora_nb.teach import lora_layer as lora
from torch import nn

sizes = st.integers(1, 48)
def pair(i, o, r, alpha, rslora=False, seed=0):
    "Our layer and PEFT's, with the same weights and a B that is not zero"
    torch.manual_seed(seed)
    mine = lora.LoRALinear(nn.Linear(i, o), r, alpha, rslora)
    mine.B.data.normal_()
    base = nn.Linear(i, o)
    base.load_state_dict(mine.base.state_dict())
    cfg = LoraConfig(r=r, lora_alpha=alpha, use_rslora=rslora, target_modules=['0'])
    theirs = get_peft_model(nn.Sequential(base), cfg).base_model.model[0]
    theirs.lora_A['default'].weight.data.copy_(mine.A.data)
    theirs.lora_B['default'].weight.data.copy_(mine.B.data)
    return mine,theirs

def close(a, b): return (a-b).abs().max().item()<=1e-5*max(1., b.abs().max().item())

@settings(max_examples=40, deadline=None)
@given(sizes, sizes, st.integers(1, 16), st.integers(1, 64), st.booleans(), st.integers(0, 99))
def test_forward_gradients_and_merge(i, o, r, alpha, rslora, seed):
    "Equal within 1e-5 of the largest value"
    mine,theirs = pair(i, o, r, alpha, rslora, seed)
    x = torch.randn(3, i)
    for l in (mine, theirs): l(x).square().sum().backward()
    apart = mine(x).detach()
    assert mine.scaling==theirs.scaling['default'] and close(apart, theirs(x))
    assert close(mine.A.grad, theirs.lora_A['default'].weight.grad) and close(mine.B.grad, theirs.lora_B['default'].weight.grad)
    assert mine.base.weight.grad is None
    before = mine.base.weight.clone()
    theirs.merge()
    assert close(lora.merge(mine)(x), apart) and close(mine.base.weight, theirs.base_layer.weight)
    assert close(lora.unmerge(mine).base.weight, before)

def test_a_fresh_adapter_changes_nothing_and_learns_through_b():
    layer = lora.LoRALinear(nn.Linear(32, 16), r=4)
    x = torch.randn(5, 32)
    assert torch.equal(layer(x), layer.base(x))
    layer(x).square().sum().backward()
    assert not layer.A.grad.any() and layer.B.grad.abs().min()>0

def test_starts_as_peft_does():
    "Both draws of A have the spread of PEFT's"
    for gaussian,init in ((False, True), (True, 'gaussian')):
        mine = lora.LoRALinear(nn.Linear(4096, 8), r=16, gaussian=gaussian)
        theirs = get_peft_model(nn.Sequential(nn.Linear(4096, 8)), LoraConfig(r=16, target_modules=['0'], init_lora_weights=init)).base_model.model[0]
        a,b = mine.A,theirs.lora_A['default'].weight
        assert abs((a.std()/b.std()).item()-1)<.02 and abs((a.abs().max()/b.abs().max()).item()-1)<(.3 if gaussian else .02)

def test_merging_twice_is_merging_once():
    mine,_ = pair(8, 8, 2, 4)
    once = lora.merge(mine).base.weight.clone()
    assert torch.equal(lora.merge(mine).base.weight, once)
    lora.unmerge(mine)
    assert torch.equal(lora.unmerge(mine).base.weight, mine.base.weight)

@pytest.mark.parametrize('r,alpha,rslora,factor', [(8, 16, False, 2), (8, 16, True, 5.656854), (64, 16, False, .25), (1, 1, True, 1)])
def test_scaling(r, alpha, rslora, factor): assert lora.scaling(r, alpha, rslora)==pytest.approx(factor)

@settings(max_examples=20, deadline=None)
@given(sizes, sizes, st.integers(1, 8))
def test_count_is_that_of_peft(i, o, r):
    model = get_peft_model(nn.Sequential(nn.Linear(i, o)), LoraConfig(r=r, target_modules=['0']))
    assert lora.lora_parameters(i, o, r)==model.get_nb_trainable_parameters()[0]
    assert lora.lora_parameters(i, o, r)==lora.trainable(lora.add_lora(nn.Sequential(nn.Linear(i, o)), ('0',), r=r))

def test_only_named_layers_are_adapted():
    model = lora.add_lora(nn.ModuleDict(dict(q_proj=nn.Linear(4, 4), mlp=nn.Linear(4, 4))), ('q_proj',))
    assert isinstance(model['q_proj'], lora.LoRALinear) and not any(p.requires_grad for p in model['mlp'].parameters())

@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 99))
def test_low_rank_is_the_best(r, seed):
    torch.manual_seed(seed)
    M = torch.randn(16, 12)
    B,A = lora.low_rank(M, r)
    rest = torch.linalg.svdvals(M)[r:]
    assert (M-B@A).norm()==pytest.approx(float(rest.norm()), abs=1e-4) and B.shape==(16, r) and A.shape==(r, 12)
    assert lora.effective_rank(B@A, 1-1e-9)==min(r, 12)

def test_effective_rank_counts_directions():
    assert lora.effective_rank(torch.diag(torch.tensor([10., 1., .1])))==1
    assert lora.effective_rank(torch.eye(10), .95)==10
