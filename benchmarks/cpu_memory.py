"""The trace against a real training step on this CPU: peak of the tensors, byte for byte.

A model of random weights is saved, loaded through transformers and bitsandbytes, and trained for two steps, by TRL's `SFTTrainer`, by `%qlora_train`'s trainer, or by
a loop of one's own. PyTorch's profiler writes down each allocation and each release; their running sum in the second step, on top of what was there before, has
a peak. It is held against the largest phase of `trace(job, layers='all')`, loading aside, which comes before the steps. Where they differ, the blocks that are alive at one peak only are named.

    python benchmarks/cpu_memory.py [--only TEXT] [--explain]

Exit status 0 if no difference is above the limit."""
import argparse, contextlib, gc, shutil, sys, tempfile, types, warnings
from collections import Counter
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from families import TINY
from qlora_nb.training.loading import guard
from qlora_nb.methods.experts import settle
from qlora_nb.methods.lora import lora_config
from qlora_nb.quiet import quiet
from qlora_nb.facts.models import find, from_config
from qlora_nb.facts.skeleton import has_experts, with_body
from qlora_nb.render import fmt_bytes, text_table
from qlora_nb.simulation.job import detect, make_job, stack
from qlora_nb.simulation.run import run
from qlora_nb.simulation.trace import trace
from qlora_nb.tasks.causal_lm import CAUSAL_LM

LIMIT = .015
CPU = dict(device='cpu', optim='adamw_torch', lora_dropout=.05)
TRL,OWN,RAW = stack('trl', adapter_dtype='bfloat16'),detect('cpu'),stack('raw')

def cut(name, layers):
    "A model's shape with fewer layers"
    return from_config({**find(name).config, 'num_hidden_layers': layers}, f'{name}, {layers} layers')

def configs():
    demo,short,llama = find('demo'),cut('demo', 6),cut('Llama-2-7B', 2)
    yield 'demo, %qlora_train', make_job(demo, batch=2, length=128, attention='eager', stack=OWN, **CPU)
    yield 'demo, 6 layers, %qlora_train, half of the tokens trained', make_job(short, batch=4, length=128, attention='eager', learned=64/127, stack=OWN, **CPU)
    yield 'demo, 6 layers, %qlora_train, packed rows', make_job(short, batch=1, length=1024, stack=OWN, **CPU)
    yield 'demo, 6 layers, %qlora_train, 2 micro-batches', make_job(short, batch=2, length=128, accumulation=2, attention='eager', stack=OWN, **CPU)
    yield 'demo, 6 layers, TRL, r 8', make_job(short, batch=2, length=256, r=8, stack=TRL, **CPU)
    yield 'demo, 6 layers, TRL, no checkpointing, r 64', make_job(short, batch=2, length=256, r=64, checkpointing=False, stack=TRL, **CPU)
    yield 'demo, 6 layers, raw loop, r 128', make_job(short, batch=2, length=256, r=128, stack=RAW, **CPU)
    yield 'demo, 6 layers, raw loop, no checkpointing', make_job(short, batch=2, length=256, checkpointing=False, attention='eager', stack=RAW, **CPU)
    yield 'demo, 6 layers, raw loop, 8 bits', make_job(short, stored='int8', batch=2, length=128, stack=RAW, **CPU)
    yield 'Llama-2-7B, 2 layers, TRL', make_job(llama, batch=1, length=64, stack=TRL, **CPU)
    yield 'Llama-2-7B, 2 layers, raw loop, r 64, no double quantisation', make_job(llama, batch=1, length=128, r=64, double_quant=False, stack=RAW, **CPU)
    yield 'Llama-2-7B, 2 layers, %qlora_train, no checkpointing, r 128', make_job(llama, batch=2, length=64, r=128, attention='eager', checkpointing=False, stack=OWN, **CPU)
    yield 'Llama-2-7B, 2 layers, TRL, 8 bits, r 8', make_job(llama, stored='int8', batch=1, length=64, r=8, stack=TRL, **CPU)

    for name in TINY: yield f'{name}, tiny, %qlora_train', family_job(name)

def family_job(name, **changes):
    "A job of a tiny model of a family"
    values = dict(batch=2, length=128, learned=64/127, stack=OWN) | CPU | changes
    return make_job(from_config(TINY[name], name), **values)

# A model on disk, loaded as a user would

def folder_of(arch, where):
    "Random weights in bfloat16, saved once for each shape"
    from transformers import AutoConfig, AutoModelForCausalLM
    folder = Path(where)/arch.name.replace(' ', '')
    if folder.exists(): return folder
    c = {k: v for k,v in arch.config.items() if k not in ('torch_dtype', 'dtype', 'quantization_config', 'transformers_version', 'architectures', '_name_or_path')}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(c.pop('model_type'), **c), dtype=torch.bfloat16).save_pretrained(folder)
    return folder

def loaded(job, where):
    from transformers import AutoModelForCausalLM
    dtype = torch.float32 if job.stack==OWN else torch.bfloat16 # As `load_base` does; the raw loop casts later
    m = AutoModelForCausalLM.from_pretrained(folder_of(job.arch, where), dtype=dtype, attn_implementation=job.attention,
        **job.storage.load_kwargs(torch.bfloat16, has_experts(job.arch.config)))
    m = with_body(settle(m))
    m.config.use_cache = False
    return m if job.storage.bits==8 else guard(m)

def lora_of(job): return job.section.model_copy(update=dict(lora_alpha=2*job.section.r))

def rows(job): # Two steps' worth
    "Rows of `length` tokens; of those with a next token, the last ones are trained"
    kept = round((job.length-1)*job.learned)
    ids = [[5+(7*i+j)%1000 for j in range(job.length)] for i in range(job.batch*job.accumulation*2)]
    return [dict(input_ids=x, labels=[-100]*(job.length-kept)+x[job.length-kept:]) for x in ids]

# Two steps, the second one marked

def raw_steps(job, base):
    from peft import get_peft_model, prepare_model_for_kbit_training
    base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=job.checkpointing, gradient_checkpointing_kwargs=dict(use_reentrant=False))
    model = get_peft_model(base, lora_config(lora_of(job), base)).train()
    params,data = [p for p in model.parameters() if p.requires_grad],rows(job)
    def step(opt, part):
        ids,labels = (torch.tensor([r[k] for r in part]) for k in ('input_ids', 'labels'))
        out = model(input_ids=ids, labels=labels)
        out.loss.backward()
        opt.step()
        opt.zero_grad()
    def train():
        opt = torch.optim.AdamW(params, lr=1e-4)
        step(opt, data[:job.batch])
        with record_function('second step'): step(opt, data[job.batch:])
    return model,train

class Marked(contextlib.ExitStack):
    "A trainer callback that marks the second step"
    def callback(self):
        from transformers import TrainerCallback
        stack = self
        class Mark(TrainerCallback):
            def on_step_begin(self, args, state, control, **kw):
                if state.global_step==1: stack.enter_context(record_function('second step'))
            def on_step_end(self, args, state, control, **kw): stack.close()
        return Mark()

def trl_trainer(job, base, data, tok, folder):
    from trl import SFTConfig, SFTTrainer
    args = SFTConfig(output_dir=str(folder), use_cpu=True, bf16=True, gradient_checkpointing=job.checkpointing, per_device_train_batch_size=job.batch,
        gradient_accumulation_steps=job.accumulation, max_steps=2, optim=job.optim, max_length=None, report_to='none', save_strategy='no', disable_tqdm=True,
        dataloader_pin_memory=False)
    return SFTTrainer(model=base, args=args, train_dataset=data, processing_class=tok, peft_config=lora_config(lora_of(job), base))

def own_trainer(job, base, data, tok, folder):
    "What `%qlora_train` makes of its config and its rows"
    from qlora_nb import parse
    from qlora_nb.facts.machine import detect
    from qlora_nb.training.run import Run
    from qlora_nb.training.trainer import make_trainer
    config = parse('model: demo\ndata: {train: demo}').with_(**{'lora.r': job.section.r, 'lora.lora_dropout': job.section.lora_dropout,
        'training.optim': job.optim, 'training.max_steps': 2, 'training.preflight': False,
        'training.per_device_train_batch_size': job.batch, 'training.gradient_accumulation_steps': job.accumulation, 'training.gradient_checkpointing': job.checkpointing})
    run = Run(config, folder)
    run.device,run.precision,run.tokenizer = detect(),types.SimpleNamespace(compute='bfloat16', adapters='float32'),tok
    run.data = types.SimpleNamespace(train=types.SimpleNamespace(dataset=data), validation=None, sampling='random', task=CAUSAL_LM, model_settings={})
    run.trainer = make_trainer(run, base)
    return run.trainer

def trainer_steps(job, base, folder):
    from datasets import Dataset
    from qlora_nb.training.loading import load_tokenizer
    trainer = (trl_trainer if job.stack.name=='trl' else own_trainer)(job, base, Dataset.from_list(rows(job)), load_tokenizer('demo'), folder)
    trainer.add_callback(Marked().callback())
    return trainer.model,trainer.train

# The allocator's events

def living(): # → {address: bytes}
    "Every storage that Python can reach"
    gc.collect()
    tensors = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.device.type=='cpu' and t.layout==torch.strided and type(t).__name__!='FakeTensor'}

def blocks_of(p): # → [(time, address, bytes, who asked for it)], and the window of the second step
    "Allocations of a profile, in order"
    todo,found,window = [(e, '') for e in p.profiler.kineto_results.experimental_event_tree()],[],None
    while todo:
        e,path = todo.pop()
        if e.name=='second step' and window is None: window = e.start_time_ns,e.end_time_ns
        if e.name=='[memory]': found.append((e.start_time_ns, e.extra_fields.ptr, e.extra_fields.alloc_size, path))
        else: path = (path+' > '+e.name if path else e.name)[-90:]
        todo += [(c, path) for c in e.children]
    return sorted(found, key=lambda f: f[0]),window

def real(job, where): # → bytes at the peak, [(bytes, who)] of what the steps had allocated there
    "The peak of the second step of a real run"
    before,folder = living(),Path(tempfile.mkdtemp(dir=where))
    base = loaded(job, where)
    model,train = (raw_steps(job, base) if job.stack.loop=='raw' else trainer_steps(job, base, folder))
    held = {k: n for k,n in living().items() if k not in before}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p: train()
    found,(begin,end) = blocks_of(p)
    total,best,live,at_peak = 0,-1,{},{}
    for time,address,size,who in found:
        total += size
        if size>0: live[address] = size,who
        else: live.pop(address, None)
        if begin<=time<=end and total>best: best,at_peak = total,dict(live)
    return sum(held.values())+best,[(n, '') for n in held.values()]+list(at_peak.values())

def traced_blocks(job): # → [(bytes, what)] at the peak
    log = run(job, job.arch.num_hidden_layers)
    second,total,best,live,at_peak = log.segments.index(('second', '', None)),0,-1,{},{}
    for i,sign,s in log.events:
        size,category = log.blocks[i]
        total += sign*size
        if sign>0: live[i] = size,f'{category}, {" ".join(map(str, log.segments[s]))}'
        else: del live[i]
        if s>second and total>best: best,at_peak = total,dict(live)
    return list(at_peak.values())

def named(ours, theirs, most): # → lines, the largest differences first
    "Sizes that live at one peak more often than at the other"
    a,b = (Counter(n for n,_ in x) for x in (ours, theirs))
    out = []
    for n in sorted({*a, *b}, key=lambda n: -abs(n*(a[n]-b[n]))):
        if a[n]==b[n]: continue
        who = Counter(w for m,w in (ours if a[n]>b[n] else theirs) if m==n and w)
        out.append(f"    {abs(a[n]-b[n])} × {n:,} B more in the {'trace' if a[n]>b[n] else 'run'}: {'; '.join(f'{c} × {w}' for w,c in who.most_common(4))}")
    return out[:most]

def main(argv=None): # → exit status
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--only', default='', help='configurations whose name contains this')
    p.add_argument('--explain', type=int, default=0, metavar='N', help='name the N largest differences of each configuration')
    args = p.parse_args(argv)
    where,table,worst = tempfile.mkdtemp(prefix='qlora_nb-'),[],0.
    try:
        for name,job in configs():
            if args.only not in name: continue
            with quiet(), warnings.catch_warnings():
                warnings.simplefilter('ignore')
                measured,theirs = real(job, where)
            t = max(b for phase,b in trace(job, layers='all').phases.items() if phase!='load')
            off = t/measured-1
            worst = max(worst, abs(off))
            table.append((name, f'{job.batch} × {job.length}', fmt_bytes(t), fmt_bytes(measured), f'{t-measured:+,}', f'{off:+.2%}'))
            print(*table[-1], sep=' | ', flush=True)
            if args.explain: print('\n'.join(named(traced_blocks(job), theirs, args.explain)), flush=True)
    finally: shutil.rmtree(where, ignore_errors=True)
    print('\n'+text_table(table, ('configuration', 'tokens', 'traced', 'real', 'bytes', 'difference'), 'Trace and allocator', num=(2, 3, 4, 5)))
    print(f'\nWorst of {len(table)}: {worst:.2%}; the limit is {LIMIT:.1%}.')
    return int(worst>LIMIT)

if __name__=='__main__': sys.exit(main())
