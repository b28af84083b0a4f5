"""What is fastest on a CPU: the choices behind `facts.hardware.attention` and `tasks.loss.trained_loss`, each measured on the demo model.

Every variant takes the same training steps (forward, loss, backward) on the same rows; variants take turns, round after round, in one process.

    python benchmarks/cpu_speed.py [--rounds 3] [--lengths 112 512 1024]"""
import argparse, contextlib, statistics, time
import torch
from types import SimpleNamespace as S
from peft import get_peft_model
from qlora_nb import parse
from qlora_nb.facts.machine import detect
from qlora_nb.training.loading import load_base, upcast_adapters
from qlora_nb.methods.lora import lora_config
from qlora_nb.quiet import quiet
from qlora_nb.tasks.loss import trained_loss

CFG = parse('model: demo\ndata: {train: demo}\ntraining: {max_length: 1024}')

def model(attention='sdpa', adapters='float32', compute='bfloat16'):
    with quiet(): base = load_base('demo', CFG, detect(), compute)
    base.set_attn_implementation(attention)
    m = get_peft_model(base, lora_config(CFG.lora, base)).train()
    upcast_adapters(m, adapters)
    return m

def all_positions(m, x):
    "TRL's route off the GPU: the head on every position"
    z = m(input_ids=x['input_ids'], use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(z.flatten(0, 1), x['labels'][:, 1:].flatten(), ignore_index=-100)

def step(m, x, loss, autocast, checkpointing):
    if checkpointing: m.gradient_checkpointing_enable(dict(use_reentrant=False))
    m.enable_input_require_grads() if checkpointing else None
    with torch.autocast('cpu', torch.bfloat16) if autocast else contextlib.nullcontext(): l = loss(m, x)
    l.backward()
    m.zero_grad()
    if checkpointing: m.gradient_checkpointing_disable()

def batch(length, tokens=896):
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 49000, (max(1, tokens//length), length), generator=g)
    labels = ids.clone()
    labels[:, :length*2//3] = -100 # as in the demo: the answer is a third of the row
    return dict(input_ids=ids, labels=labels)

def trained(m, x): return trained_loss(m, x)[0]
CHOSEN = S(m=('eager', 'float32', 'bfloat16'), loss=trained, autocast=True, checkpointing=False)
def but(**kw): return S(**{**vars(CHOSEN), **kw})
VARIANTS = {'chosen for short rows: eager attention, loss on trained positions, bfloat16, float32 adapters': CHOSEN,
    'sdpa attention': but(m=('sdpa', 'float32', 'bfloat16')), 'head on every position': but(loss=all_positions), 'bfloat16 adapters': but(m=('eager', 'bfloat16', 'bfloat16')),
    'no autocast': but(autocast=False), 'gradient checkpointing': but(checkpointing=True), 'float32 throughout': but(m=('eager', 'float32', 'float32'), autocast=False)}

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--rounds', type=int, default=3)
    ap.add_argument('--lengths', type=int, nargs='*', default=[112, 512, 1024])
    a = ap.parse_args()
    models = {k: model(*k) for k in {v.m for v in VARIANTS.values()}}
    print(f'{torch.get_num_threads()} threads; time of a step of 896 tokens, median of {a.rounds} rounds (lowest to highest), and its ratio to the chosen one')
    for n in a.lengths:
        x,t = batch(n),{k: [] for k in VARIANTS}
        for r in range(a.rounds+1):
            for k,v in VARIANTS.items():
                begun = time.perf_counter()
                step(models[v.m], x, v.loss, v.autocast, v.checkpointing)
                if r: t[k].append(time.perf_counter()-begun)
        first = statistics.median(next(iter(t.values())))
        print(f'\nrows of {n} tokens')
        for k,ts in t.items(): print(f'{statistics.median(ts):7.2f} s ({min(ts):.2f} to {max(ts):.2f})  x{statistics.median(ts)/first:.2f}  {k}', flush=True)

if __name__=='__main__': main()
