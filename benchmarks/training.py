"""Plain TRL + PEFT + bitsandbytes with TRL's own defaults against `%qlora_train`, on this machine's CPU.

Shared: model, rows and their order, LoRA configuration and first weights, learning rate and schedule, batch, steps, seed (another in each round). Each run is a process of its own;
the runs of a pair follow each other, so that a ratio compares neighbours. The held-out loss of each adapter is computed by the same code.

    python benchmarks/training.py [--steps 30] [--pairs 5] [--json OUT]"""
import argparse, json, os, statistics, subprocess, sys, tempfile, time
from pathlib import Path

SHARED = dict(learning_rate=1e-3, per_device_train_batch_size=8, gradient_accumulation_steps=1, lr_scheduler_type='linear', warmup_steps=0, max_grad_norm=1.0)
VARIANTS = dict(trl="TRL's defaults", trl_no_checkpointing="TRL's defaults, gradient checkpointing off", ours='%qlora_train', ours_checkpointing='%qlora_train, gradient checkpointing on')

def lora():
    from peft import LoraConfig
    return LoraConfig(task_type='CAUSAL_LM', r=16, lora_alpha=32, lora_dropout=.05, target_modules='all-linear')

def trl(steps, out, checkpointing, seed):
    "What a person writes who follows TRL's documentation; on a CPU it needs `use_cpu`"
    import torch
    from datasets import load_dataset
    from transformers import AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer
    from qlora_nb.facts.demo import data_path, model_path
    rows = load_dataset('json', data_files=str(data_path('train')), split='train').select_columns(['prompt', 'completion'])
    rows = rows.map(lambda r: dict(prompt=[dict(role='user', content=r['prompt'])], completion=[dict(role='assistant', content=r['completion'])]))
    q = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
    args = SFTConfig(out, use_cpu=True, max_steps=steps, logging_steps=1, report_to='none', gradient_checkpointing=checkpointing,
        disable_tqdm=True, seed=seed, **SHARED)
    clock = []
    class Clock(TrainerCallback):
        def on_step_end(self, *a, **k): clock.append(time.perf_counter())
    t = SFTTrainer(str(model_path()), args, train_dataset=rows, quantization_config=q, peft_config=lora(), callbacks=[Clock()],
        processing_class=AutoTokenizer.from_pretrained(model_path()))
    begun = time.perf_counter()
    t.train()
    wall = time.perf_counter()-begun
    t.save_model(f'{out}/adapter')
    return dict(clock=clock, wall=wall, tokens=[o['num_tokens'] for o in t.state.log_history if 'num_tokens' in o], adapter=f'{out}/adapter')

def ours(steps, out, checkpointing, seed):
    "The same through the magic, in a shell, panel callbacks included"
    from IPython.core.interactiveshell import InteractiveShell
    ip = InteractiveShell()
    ip.run_line_magic('load_ext', 'qlora_nb')
    t = ''.join(f'  {k}: {v}\n' for k,v in (SHARED|dict(seed=seed, max_steps=steps, max_length=1024, gradient_checkpointing=checkpointing)).items())
    ip.run_cell(f'%%qlora_config\nmodel: demo\ndata: {{train: demo}}\nlora: {{r: 16, lora_alpha: 32}}\ntraining:\n{t}output: {{output_dir: {out}}}').raise_error()
    ip.run_cell('%qlora_train -o run').raise_error()
    run = ip.user_ns['run']
    events = [json.loads(l) for l in (run.folder/'events.jsonl').read_text().splitlines()]
    logs = [e for e in events if e['event']=='log' and 'num_tokens' in e]
    wall = next(e['time'] for e in events if e['event']=='finished')-next(e['time'] for e in events if e['event']=='train_begin')
    return dict(clock=[e['time'] for e in logs], wall=wall, tokens=[e['num_tokens'] for e in logs], adapter=str(run.adapter), own=run.own_seconds, trial=run.trial_seconds)

def held_out_loss(adapter):
    "Mean loss a token on the answers of 50 held-out rows, 4-bit base in bfloat16, for both alike"
    import torch
    from peft import PeftModel
    from types import SimpleNamespace as S
    from qlora_nb import parse
    from qlora_nb.tokens.gate import prepare
    from qlora_nb.training.loading import load_base, load_tokenizer
    from qlora_nb.quiet import quiet
    with quiet():
        cfg = parse('model: demo\ndata: {train: demo, validation: demo}')
        held = prepare(cfg, load_tokenizer('demo')).validation.dataset.select(range(50))
        model = PeftModel.from_pretrained(load_base('demo', cfg, S(kind='cpu'), 'bfloat16'), adapter).eval()
    total = n = 0
    with torch.no_grad():
        for r in held:
            labels = torch.tensor([r['labels']])
            k = int((labels[:, 1:]!=-100).sum())
            total += float(model(input_ids=torch.tensor([r['input_ids']]), labels=labels).loss)*k
            n += k
    return total/n

def one(variant, steps, seed):
    import torch
    torch.manual_seed(seed) # of the adapters: the trainers seed themselves only after PEFT has drawn them
    with tempfile.TemporaryDirectory() as out:
        r = (ours if variant.startswith('ours') else trl)(steps, out, {'trl': True, 'ours_checkpointing': True}.get(variant, False), seed)
        c,n = r['clock'],r['tokens']
        speed = (n[-1]-n[0])/(c[-1]-c[0]) # the first step warms up
        return dict(variant=variant, tokens_per_second=speed, tokens=n[-1], wall=r['wall'], loss=held_out_loss(r['adapter']), own_share=r.get('own', 0)/r['wall'], trial=r.get('trial', 0))

def run(variant, steps, seed):
    o = subprocess.run([sys.executable, __file__, '--one', variant, '--steps', str(steps), '--seed', str(seed)], capture_output=True, text=True, env=dict(os.environ, HF_HUB_OFFLINE='1'))
    if o.returncode: raise SystemExit(o.stderr[-3000:])
    return json.loads(o.stdout.splitlines()[-1])

def spread(xs): return f'{statistics.median(xs):.3g} ({min(xs):.3g} to {max(xs):.3g})'

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--steps', type=int, default=30)
    ap.add_argument('--pairs', type=int, default=5)
    ap.add_argument('--seed', type=int, default=42, help='Of the first round; each round has the next')
    ap.add_argument('--json')
    ap.add_argument('--one', choices=VARIANTS, help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.one: return print('\n'+json.dumps(one(a.one, a.steps, a.seed)))
    rounds = []
    for i in range(a.pairs):
        rounds.append({v: run(v, a.steps, a.seed+i) for v in VARIANTS})
        print(f'round {i+1}:', ', '.join(f"{v} {o['tokens_per_second']:.1f} tokens/s, held-out loss {o['loss']:.4f}" for v,o in rounds[-1].items()), flush=True)
    tokens = [o['tokens'] for r in rounds for o in r.values()]
    assert max(tokens)<1.02*min(tokens), 'beyond the token that follows the EOS in the template, the variants saw different rows'
    print(f'\n{a.pairs} rounds of {a.steps} steps; median (lowest to highest)')
    for v,what in VARIANTS.items():
        print(f"{what:45} tokens/s {spread([r[v]['tokens_per_second'] for r in rounds]):28} held-out loss {spread([r[v]['loss'] for r in rounds])}")
    def ratio(x, y): return spread([r[x]['tokens_per_second']/r[y]['tokens_per_second'] for r in rounds])
    print(f"\ntokens/s, %qlora_train / TRL's defaults: {ratio('ours', 'trl')}")
    print(f"  of it by switching gradient checkpointing off, within TRL: {ratio('trl_no_checkpointing', 'trl')}; within ours: {ratio('ours', 'ours_checkpointing')}")
    print(f"  the rest, gradient checkpointing equal: both off {ratio('ours', 'trl_no_checkpointing')}; both on {ratio('ours_checkpointing', 'trl')}")
    print(f"time inside callbacks and panel, checkpoints included, share of the run: {spread([r['ours']['own_share'] for r in rounds])}")
    print(f"trial of the longest batch, once before step 1, seconds: {spread([r['ours']['trial'] for r in rounds])}")
    if a.json: Path(a.json).write_text(json.dumps(rounds, indent=1))

if __name__=='__main__': main()
