"""Published memory measurements against the planner: error by row and by source, and whether the job fits the GPU.

Each row is turned into a `Job` from its model config, its method, its GPU and its `stack` alone: id, source, value, `also` and notes are taken off first.
Nothing here or in the planner is fitted to these rows.

    python benchmarks/published_memory.py benchmarks/data/measured_memory.json [--engine formula|trace] [--json OUT]

Exit status 0 if the rows of tier A are within the limits of the engine and none of them was skipped. Tier B is printed and explained, tier C is judged by
its verdicts alone. Rows of several GPUs stand apart: what each GPU holds is predicted and printed, and no limit is set on it. `benchmarks/data/measured_multi_memory.json`
has such rows."""
import argparse, json, statistics, sys, time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent)) # Also where this file is loaded by its path
from published_gpus import gpus_of, is_number, sharding_of
from qlora_nb.errors import QLoRAError
from qlora_nb.facts.architecture import FAMILIES
from qlora_nb.facts.hardware import Device, gpu
from qlora_nb.facts.models import find, from_config
from qlora_nb.planning.fit import Machine, peak, reserved, spread as shared
from qlora_nb.render import fmt_bytes, text_table
from qlora_nb.simulation.job import Job, make_job, stack
from qlora_nb.speed.sharing import MOST, parameter_bytes

HIDDEN = ('id', 'source', 'value', 'value_gib', 'unit', 'fits', 'also', 'notes', 'completeness', 'tier')
UNITS = {'bytes': 1, 'B': 1, 'MiB': 2**20, 'GiB': 2**30, 'GB(1e9)': 10**9, 'GB': 10**9, 'MB': 10**6}
OPTIMIZERS = (('PagedAdamW8bit', 'paged_adamw_8bit'), ('PagedAdamW', 'paged_adamw_32bit'), ('AdamW8bit', 'adamw_8bit'), ('fused', 'adamw_torch_fused'),
    ('SGD', 'sgd'), ('Adafactor', 'adafactor'), ('Adam', 'adamw_torch'))
DTYPES = (('bf16', 'bfloat16'), ('bfloat16', 'bfloat16'), ('fp16', 'float16'), ('float16', 'float16'), ('fp32', 'float32'), ('float32', 'float32'))
LIMITS = dict(formula=dict(median=.015, p90=.04), trace=dict(median=.005, p90=.025, worst=.05, worst_eager=.06))
CONTEXT = round(140.875*2**20) # Of CUDA on a T4, from the same fitcheck runs: `cuda_context_mib`
SPEED = 5e-3 # Seconds for Llama-2-70B, the formula

# What a row leaves open is assumed as follows, and printed. The blog states no rank: the QLoRA paper trains with r = 64 on all linear layers and drops 10 %
# (arXiv:2305.14314, section 4 and appendix B). LitGPT trains with a dropout of 5 % (finetune/lora.py).
BLOG,LITGPT = dict(r=64, target_modules='all-linear', lora_dropout=.1),dict(lora_dropout=.05)
SHORT = dict(q='q_proj', k='k_proj', v='v_proj', o='o_proj')
WHY_B = """LitGPT is another code base. What is modelled of it: one fused projection for queries, keys and values (its output stays alive as long as the values do),
adapters in bfloat16, inputs that the bitsandbytes of 2023 kept on every 4-bit layer. What is not: the output layer is quantised too (0.2 GB less for Llama-2-7B),
the vocabulary is padded, and the loss works in chunks of 128 tokens. The rows of its config hub are peaks of the whole process, loading included, and their longest
row is only known to be at most 512 tokens. Its two full fine-tuning rows are below the weights, gradients and two moments that plain AdamW keeps in
bfloat16 (8 bytes per parameter), so they cannot be what the row says: some of it was not on that GPU."""
WHY_C = """Rank, targets and dropout are not in the post; the QLoRA paper's are assumed (64, all linear layers, 10 %), with the stack of May 2023: float32 for what is not
quantised, autocast, checkpointing with re-entry, logits copied to be shifted, 4-bit layers that keep their inputs, eager attention. Of the wrong ones, the 8-bit 7B
row at 1024 tokens needs 10 GiB by this count, and the 13B row at 1024 tokens without double quantisation 13 of 14.6 GiB: its twin with double quantisation, 0.6 GB less,
did fit, so the true need is close to the GPU's memory; what the allocator holds beside the tensors (6 to 49 % more in the other T4 rows) decides there."""

WHY_SEVERAL = """All of it FSDP1, which came before the FSDP2 that a plan is for: beside two layers and the output layer it keeps the embeddings gathered. Where the code is that of
single-GPU rows with a small error (PowerLM), or is short and public (fsdp_qlora), tensors are off by 2.2 % at most. The other runs hold more, and why was not found. The runs of
Llama-3-8B and Llama-2-70B grow per token by about one more copy of the input of each layer than the same run on one GPU does (Llama-3-8B LoRA, between 4 and 8 rows: 246 KB per token,
30 hidden states in bfloat16). Those of Mistral hold 1.2 to 1.8 GB more. LitGPT's rows are peaks of the whole process, loading included. Reserved memory is held against the band of the
allocator: `inside`, or how far above or below it."""

def visible(row):
    "What the predictor may see"
    return {k: {a: b for a,b in v.items() if a!='source'} if k=='stack' and v else v for k,v in row.items() if k not in HIDDEN}

def measured(row): # → bytes; None where the row states no number in a unit that is known
    "The measured peak"
    unit = row.get('unit')
    known = is_number(row.get('value')) and isinstance(unit, str) and unit in UNITS
    return round(row['value']*UNITS[unit]) if known else None

def dtype_of(row):
    said = row.get('compute_dtype') or 'float16'
    return next((full for short,full in DTYPES if said.startswith(short)), 'float32')

def stack_of(row, dtype, pinned):
    "The stack of a row. `unknown` means the library's default: no autocast unless the dtype says so, adapters in float32 (PEFT's autocast_adapter_dtype)"
    s,framework = row.get('stack'),row.get('framework') or ''
    if s:
        auto = s.get('autocast')
        if auto=='unknown': auto = dtype if 'autocast' in (row.get('compute_dtype') or '') else None
        loss = s.get('loss') or 'full_logits'
        if 'TRL' in s['loop'] and loss=='full_logits': loss = 'full_logits_shifted' # SFTTrainer built full logits before 1.0 only, on transformers 4
        return stack('raw' if s['loop']=='raw' else 'trainer', autocast=auto, upcast=s.get('upcast') or 'none', loss=loss,
            outputs_kept=bool(s.get('outputs_kept_through_backward')), adapter_dtype=s['adapter_dtype'] if s.get('adapter_dtype') not in (None, 'unknown') else 'float32',
            use_reentrant=s.get('use_reentrant') is True, kernel=pinned)
    if 'lit' in framework: return stack('raw', upcast='none', adapter_dtype=dtype, outputs_kept=False, inputs_kept=True)
    return stack('trainer', autocast=dtype, loss='full_logits_shifted', use_reentrant=True, inputs_kept=True)

def job_of(row)->Job: # `row` as `visible` gives it
    "The job of a row"
    dtype,framework = dtype_of(row),row.get('framework') or ''
    missing = [k for k in ('model_config', 'method', 'quant', 'micro_batch', 'seq_len') if row.get(k) is None]
    if missing: raise QLoRAError(f"the row has no {', '.join(missing)}")
    arch = from_config({**row['model_config'], 'max_position_embeddings': row['seq_len']}, row.get('model') or '')
    device = device_of(row)
    cap = device.capability if device else (8, 0)
    asked = dict(r=row.get('lora_r') or 16, lora_dropout=(row.get('stack') or {}).get('lora_dropout') or 0.)
    asked['target_modules'] = tuple(SHORT.get(t.split()[0], t) for t in row['target_modules']) if row.get('target_modules') else 'all-linear'
    if 'lit' in framework: asked |= LITGPT
    elif not row.get('stack') and row.get('lora_r') is None and row['method']!='full': asked |= BLOG
    if 'lit' in framework and row['method']!='full':
        arch = replace(arch, block=replace(FAMILIES[arch.model_type], qkv=('qkv_proj',)))
        asked['target_modules'] = ('qkv_proj',)
    method = 'full' if row['method']=='full' else 'lora'
    stored = row['quant'] if row['quant'] in ('nf4', 'fp4', 'int8') else dtype
    if method=='full': asked = {}
    pinned = 'efficient' if cap<(8, 0) else 'auto' # The rows on a GPU without a flash kernel were run with SDPA pinned to this one
    return make_job(arch, method, stored, double_quant=bool(row.get('double_quant')), batch=row['micro_batch'],
        length=row['seq_len'], checkpointing=bool(row.get('grad_checkpointing')), attention=(row.get('attn_impl') or 'sdpa').split()[0], dtype=dtype,
        optim=next((o for said,o in OPTIMIZERS if said in (row.get('optimizer') or 'Adam')), 'adamw_torch'), capability=cap, stack=stack_of(row, dtype, pinned), **asked)

def on_each(row, engine): # → the peak of each GPU, and what FSDP1 has gathered beside it
    "The predictor for several GPUs"
    n,how = gpus_of(row),sharding_of(row)
    if n>MOST: raise QLoRAError(f'ran on {n} GPUs: more than one machine')
    if (row.get('stack') or {}).get('weights_dtype'): raise QLoRAError('weights in float32 that FSDP gathers in 16 bits (its mixed precision): no job says that')
    job = replace(job_of(row), accumulation=row.get('grad_accum') or 1)
    each = shared(peak(job, engine), job, Machine(device_of(row) or Device('cuda', 'a GPU', capability=(8, 0), bf16=True), n, how))
    first = how=='fsdp' and row.get('fsdp_version')==1 and each.binding in ('forward', 'backward')
    return each,parameter_bytes(job)[2] if first else 0,job

def predict(row, engine='formula'): # → bytes
    "The predictor; it is given what `visible` leaves of a row"
    if gpus_of(row)>1:
        each,more,_ = on_each(row, engine)
        return each.tensors+more
    if engine=='trace': from qlora_nb.simulation.trace import trace as f
    else: from qlora_nb.planning.estimate import estimate as f
    return f(job_of(row)).tensors

def device_of(row): # → `Device`, or None for a GPU that the catalogue does not know
    "The GPU, by its name, with or without its size"
    name = row.get('gpu') or ''
    for n in (name, name.rpartition(' ')[0]):
        try: return gpu(n)
        except QLoRAError: continue

def verdict(row, predicted): # → `fits`, `no`, or '' where the GPU is not known
    "Whether tensors and CUDA's context fit: the allocator gives its cached blocks back before it fails"
    device = device_of(row)
    return '' if not device or not device.memory else 'fits' if predicted+CONTEXT<=device.memory else 'no'

def skip(row): # → the reason, or ''
    "Why a row cannot be judged"
    try:
        if gpus_of(row)>1: sharding_of(row)
    except QLoRAError as e: return str(e)
    value,unit = row.get('value'),row.get('unit')
    if value is None: return ''
    if not is_number(value): return f'the value must be a positive number, got {value!r}'
    return '' if isinstance(unit, str) and unit in UNITS else f"unknown unit {unit!r}, not one of {', '.join(UNITS)}"

def band_of(row, engine): # → bytes, low and high; None where the row is of tensors, or of one GPU
    "What the allocator would reserve on each GPU, for a row that states reserved memory"
    if measured(row) is None or gpus_of(row)==1 or 'reserved' not in str(row.get('measured_kind')): return None
    each,more,job = on_each(visible(row), engine)
    return tuple(n+more for n in reserved(each, job.attention))

def judge(row, engine):
    "One row of the report"
    row = row if isinstance(row, dict) else {}
    tier = row.get('tier')
    out = dict(id=str(row.get('id') or 'a row without a name'), tier=str(tier) if tier else None, source=str(row.get('source') or ''), attention=str(row.get('attn_impl') or '').split(' ')[0], fits=row.get('fits'),
        measured_bytes=measured(row), predicted_bytes=None, error=None, verdict='', skipped=skip(row), gpus=1, band=None)
    try: out['gpus'] = gpus_of(row)
    except QLoRAError: pass
    if out['skipped']: return out
    try: p,out['band'] = predict(visible(row), engine),band_of(row, engine)
    except QLoRAError as e: return out | dict(skipped=str(e))
    except Exception as e: return out | dict(skipped=f'{type(e).__name__}: {e}') # A row that is malformed in a way not thought of
    out |= dict(predicted_bytes=p, verdict=verdict(row, p))
    return out | dict(error=p/out['measured_bytes']-1) if out['measured_bytes'] and not out['band'] else out

def family(source): # → a short name of a source
    source = str(source)
    for k,name in (('fitcheck', 'fitcheck-llm 0.3.1 (T4)'), ('can-i-finetune', 'can-i-finetune-this (RTX 4080)'), ('fms-acceleration', 'fms-acceleration (A100)'),
        ('litgpt', 'LitGPT'), ('lora-insights', 'Lightning, LoRA insights'), ('huggingface/blog', 'Hugging Face blog (T4)')):
        if k in source: return name
    return source[:40] or 'no source'

def spread(errors):
    "Median, 90th percentile and worst of the absolute errors"
    e = sorted(abs(x) for x in errors)
    return dict(n=len(e), median=statistics.median(e), p90=e[max(0, -(-9*len(e)//10)-1)], worst=e[-1])

def within(rows, engine): # → what is outside the limits
    "The rows of tier A against the limits"
    a,limits = [r for r in rows if r['tier']=='A' and r['gpus']==1],LIMITS[engine]
    bad = [f"{r['id']} was skipped: {r['skipped']}" for r in a if r['skipped']]
    errors = [r['error'] for r in a if r['error'] is not None]
    if not errors: return bad
    s = spread(errors)
    bad += [f'{k} {s[k]:.2%} is above {limits[k]:.2%}' for k in ('median', 'p90') if s[k]>limits[k]]
    for r in a:
        top = limits.get('worst_eager' if r['attention']=='eager' else 'worst')
        if top and r['error'] is not None and abs(r['error'])>top: bad.append(f"{r['id']} is off by {r['error']:+.2%}, above {top:.0%}")
    return bad

def speed(): # → seconds, the median of 20
    from qlora_nb.planning.estimate import estimate
    job,times = make_job(find('Llama-2-70B'), batch=2, length=2048),[]
    for _ in range(21):
        begun = time.perf_counter()
        estimate(job)
        times.append(time.perf_counter()-begun)
    return statistics.median(times[1:])

def line(r):
    said = '' if r['fits'] is None or not r['verdict'] else 'right' if r['fits']==(r['verdict']=='fits') else 'wrong'
    size = [fmt_bytes(b, 'MiB') if b else ('OOM' if r['fits'] is False else '—') for b in (r['measured_bytes'],)]
    return (r['id'] if len(r['id'])<76 else '…'+r['id'][-75:], *size, fmt_bytes(r['predicted_bytes'], 'MiB') if r['predicted_bytes'] else '—',
        '' if r['error'] is None else f"{r['error']:+.2%}", r['skipped'] or r['verdict'], said)

def line_of_several(r):
    size = fmt_bytes(r['measured_bytes'], 'MiB') if r['measured_bytes'] else '—'
    about = '' if r['error'] is None else f"{r['error']:+.2%}"
    if r['band']: # What the allocator holds, against its band
        low,high = r['band']
        near = min(max(r['measured_bytes'], low), high)
        about = 'inside' if near==r['measured_bytes'] else f"{r['measured_bytes']/near-1:+.1%}"
        return r['id'],f"{r['gpus']}",size,f"{fmt_bytes(low, 'MiB')} to {fmt_bytes(high, 'MiB')}",about,r['skipped']
    return str(r['id']),f"{r['gpus']}",size,fmt_bytes(r['predicted_bytes'], 'MiB') if r['predicted_bytes'] else '—',about,r['skipped'] or r['verdict']

def several(rows):
    "The rows of several GPUs: what each holds, and errors by source and method"
    table = [text_table([line_of_several(r) for r in rows], ('row', 'GPUs', 'measured', 'predicted', 'error', ''), 'Several GPUs, each of them: apart, no limit', num=(1, 2, 3, 4))]
    sources = dict.fromkeys(family(r['source']) for r in rows)
    by = [(name, *_summary([r for r in rows if family(r['source'])==name])) for name in sources]
    table.append(text_table(by, ('source', 'rows of tensors', 'median', 'worst', 'rows of reserved memory', 'inside', 'skipped'), num=(1, 2, 3, 4, 5, 6)))
    return '\n\n'.join([*table, WHY_SEVERAL])

def _summary(rows):
    off = [r['error'] for r in rows if r['error'] is not None]
    s = spread(off) if off else None
    held = [r for r in rows if r['band']]
    inside = sum(r['band'][0]<=r['measured_bytes']<=r['band'][1] for r in held)
    return len(off),*(f'{s[k]:.2%}' if s else '' for k in ('median', 'worst')),len(held),inside if held else '',sum(bool(r['skipped']) for r in rows)

def report(rows):
    "Tables by tier, then by source; rows of several GPUs apart"
    out,apart,rows = [],[r for r in rows if r['gpus']>1],[r for r in rows if r['gpus']==1]
    for tier in sorted({r['tier'] or '?' for r in rows}):
        mine = [r for r in rows if (r['tier'] or '?')==tier]
        out.append(text_table([line(r) for r in mine], ('row', 'measured', 'predicted', 'error', 'verdict', ''), f'Tier {tier}', num=(1, 2, 3)))
        judged = [line(r)[-1] for r in mine if line(r)[-1]]
        out.append(f"Verdicts right: {judged.count('right')} of {len(judged)}")
        if why := dict(B=WHY_B, C=WHY_C).get(tier): out.append(why)
    table = []
    for name,keep in [*((f, f) for f in dict.fromkeys(family(r['source']) for r in rows)), ('tier A', None)]:
        errors = [r['error'] for r in rows if r['error'] is not None and (family(r['source'])==keep if keep else r['tier']=='A')]
        if not errors: continue
        s = spread(errors)
        table.append((name, s['n'], *(f'{s[k]:.2%}' for k in ('median', 'p90', 'worst'))))
    if table: out.append(text_table(table, ('source', 'rows', 'median', 'p90', 'worst'), 'Absolute error of the tensors', num=(1, 2, 3, 4)))
    return '\n\n'.join([*out, *([several(apart)] if apart else [])])

def main(argv=None): # → exit status
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('file', help='rows in the schema of measured_memory.json')
    p.add_argument('--engine', choices=list(LIMITS), default='formula', help='closed form, or the trace of the real code')
    p.add_argument('--json', metavar='OUT', help='write the rows: id, measured_bytes, predicted_bytes, error, verdict, skipped')
    args = p.parse_args(argv)
    rows = [judge(r, args.engine) for r in json.loads(Path(args.file).read_text(encoding='utf-8'))]
    print(report(rows))
    if args.engine=='formula': print(f'\nThe formula takes {speed()*1000:.1f} ms for Llama-2-70B (median; limit {SPEED*1000:.0f} ms).')
    if args.json:
        keys = ('id', 'measured_bytes', 'predicted_bytes', 'error', 'verdict', 'skipped')
        Path(args.json).write_text(json.dumps([{k: r[k] for k in keys} for r in rows], indent=1), encoding='utf-8')
    bad = within(rows, args.engine)
    print('\n'+('Within the limits for tier A.' if not bad else 'Outside the limits for tier A:\n  '+'\n  '.join(bad)))
    return int(bool(bad))

if __name__=='__main__': sys.exit(main())
