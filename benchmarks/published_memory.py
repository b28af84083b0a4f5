"""Published memory measurements against the planner: error by row and by source, and whether it fits.

A row is turned into a `Job` from its model config, method and stack alone; its id, source, value, notes and diagnostics are taken off before the predictor sees it.

    python benchmarks/published_memory.py benchmarks/data/measured_memory.json [--engine formula|trace] [--json OUT]"""
import argparse, json, statistics, sys, time
from pathlib import Path

from qlora_nb.errors import QLoRAError
from qlora_nb.hardware import gpu
from qlora_nb.models import from_config
from qlora_nb.stack import Job, stack

HIDDEN = ('id', 'source', 'value', 'value_gib', 'unit', 'fits', 'also', 'notes')
UNITS = {'bytes': 1, 'MiB': 2**20, 'GiB': 2**30, 'GB(1e9)': 10**9}
OPTIMIZERS = (('PagedAdamW8bit', 'paged_adamw_8bit'), ('PagedAdamW', 'paged_adamw_32bit'), ('AdamW', 'adamw_torch'))
SHORT = dict(q='q_proj', k='k_proj', v='v_proj', o='o_proj')

def visible(row): return {k: ({a: b for a,b in v.items() if a!='source'} if k=='stack' and v else v) for k,v in row.items() if k not in HIDDEN}

def measured(row): # → bytes, or None
    "The measured peak"
    return None if row['value'] is None else round(row['value']*UNITS[row['unit']])

def dtype_of(row):
    said = row['compute_dtype'] or 'float16'
    return next((full for short,full in (('bf16', 'bfloat16'), ('bfloat16', 'bfloat16'), ('fp16', 'float16'), ('float16', 'float16')) if said.startswith(short)), 'float32')

def stack_of(row, dtype, kernel):
    "The stack a row states; `unknown` is answered by the library's default of that time"
    s = row['stack']
    if not s: return stack('raw', upcast='none', outputs_kept=False, kernel=kernel)
    autocast = s['autocast'] if s['autocast']!='unknown' else dtype if 'autocast' in row['compute_dtype'] else None
    return stack('raw' if s['loop']=='raw' else 'trainer', autocast=autocast, upcast=s['upcast'], loss='full_logits_shifted' if 'TRL' in s['loop'] and s['loss']=='full_logits' else s['loss'], outputs_kept=s['outputs_kept_through_backward'],
        adapter_dtype='float32' if s['adapter_dtype'] in (None, 'unknown') else s['adapter_dtype'], use_reentrant=s['use_reentrant'] is True, kernel=kernel)

def job_of(row)->Job: # `row` as `visible` gives it
    "The job of a row"
    dtype = dtype_of(row)
    targets = tuple(SHORT.get(t.split()[0], t) for t in row['target_modules'] or ('q_proj', 'v_proj'))
    try: cap = gpu(row['gpu']).capability
    except QLoRAError: cap = (8, 0)
    kernel = 'efficient' if cap<(8, 0) else 'auto'
    arch = from_config({**row['model_config'], 'max_position_embeddings': row['seq_len']}, row['model'])
    return Job(arch, method='full' if row['method']=='full' else 'qlora' if row['quant'] in ('nf4', 'fp4', 'int8') else 'lora',
        quant=row['quant'] if row['quant']!='none' else 'nf4', double_quant=bool(row['double_quant']), r=row['lora_r'] or 16, target_modules=targets,
        lora_dropout=(row['stack'] or {}).get('lora_dropout') or 0., batch=row['micro_batch'], length=row['seq_len'], checkpointing=row['grad_checkpointing'],
        attention=row['attn_impl'].split()[0], optim=next(o for said,o in OPTIMIZERS if said in row['optimizer']), dtype=dtype, capability=cap,
        stack=stack_of(row, dtype, kernel))

def predict(row, engine='formula'): # → bytes of tensors
    "The predictor: it is given what `visible` leaves of a row"
    if engine=='formula': from qlora_nb.memory import estimate as f
    else: from qlora_nb.trace import trace as f
    return f(job_of(row)).tensors

if __name__=='__main__':
    args = sys.argv[1:]
    errors = []
    for r in json.loads(Path(args[0]).read_text()):
        if not measured(r): continue
        p,m = predict(visible(r)),measured(r)
        print(f"{r['tier']} {r['id'][-62:]:62} {m/2**20:10.1f} {p/2**20:10.1f} {100*(p/m-1):+6.2f} %")
        if r['tier']=='A': errors.append(abs(p/m-1))
    print('tier A median', statistics.median(errors), 'p90', statistics.quantiles(errors, n=10)[-1], 'worst', max(errors))
