"""Published step times against the planner: seconds of one micro-batch by GPU, method and tokens per pass, and whether the stated range holds them.

Each row is turned into a `Job` and a `Code` from its model config, method, GPU and stack alone: id, source, seconds and tokens per second are taken off
first. The constants of `planning.time.Fitted` were fitted to `benchmarks/data/measured_time.json`, and `--fit` shows how. What they predict for a GPU
that they have not seen is printed as well: each GPU in turn is left out of the fit and then predicted.

    python benchmarks/published_time.py benchmarks/data/measured_time.json [--json OUT] [--fit]

Exit status 0 if the judged rows are within the limits. Apart, and not judged: AMD GPUs, whose rows come from one stack with kernels of its own,
rows whose number of tokens is an estimate (quality C), and rows of several GPUs. Of those the range is shown with what the GPUs send each other, from all of it
hidden behind computing to none of it; with `ddp` and adapters that is next to nothing, so such a row is judged as one of a single GPU as well.
`benchmarks/data/measured_multi_time.json` has more of them."""
import argparse, json, math, statistics, sys
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent)) # Also where this file is loaded by its path
from published_gpus import gpus_of, sharding_of
from qlora_nb.errors import QLoRAError
from qlora_nb.facts.hardware import gpu, rates
from qlora_nb.facts.models import from_config
from qlora_nb.planning.time import FITTED, SPREAD, seconds, shared, step_time
from qlora_nb.speed.sharing import traffic
from qlora_nb.speed.work import Code, amounts
from qlora_nb.render import text_table
from qlora_nb.simulation.job import make_job, stack

HIDDEN = ('id', 'source', 'date', 'seconds_per_micro_batch', 'tokens_per_second', 'published_as', 'value', 'unit', 'notes', 'quality')
UNITS = dict(s=1, sec=1, second=1, seconds=1, ms=1e-3, milliseconds=1e-3, min=60, minutes=60)
DTYPES = dict(bf16='bfloat16', bfloat16='bfloat16', fp16='float16', float16='float16', half='float16', fp32='float32', float32='float32')
STORED = {'nf4': 'nf4', 'fp4': 'fp4', 'int8': 'int8', 'gptq-int4': 'nf4'} # How the base lies; `none`: in the dtype of the products
OPTIMIZERS = (('paged_adamw_8bit', 'paged_adamw_8bit'), ('8bit', 'adamw_8bit'), ('sgd', 'sgd'), ('adafactor', 'adafactor'), ('', 'adamw_torch_fused'))
FUSED = ('foak', 'liger', 'unsloth') # Packages with kernels of their own, in the name of the framework
SLOW = ('kaggle', 'colab', 'windows')
GPTQ = 20. # Bytes moved to expand a weight once, by the kernels of auto-gptq: fitted to the 13 rows of Qwen's README
SIZES = (300, 700, 1500, 3000, 6000, 20000) # Tokens of one pass
LIMITS = dict(median=1.18, p90=1.32, t4=1.15, inside=.85, spread=1.35)
FEWEST = 20 # Rows that a fit needs

def visible(row):
    "What the predictor may see"
    return {k: v for k,v in row.items() if k not in HIDDEN}

def measured(row): # → seconds of one micro-batch; raises QLoRAError
    "The published time"
    value,unit = row.get('seconds_per_micro_batch', row.get('value')),row.get('unit') or 's'
    if unit not in UNITS: raise QLoRAError(f"unknown unit {unit!r}, not one of {', '.join(UNITS)}")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0<value<math.inf: raise QLoRAError(f'no seconds of a micro-batch, got {value!r}')
    return value*UNITS[unit]

def chosen(row, key, known): # → a value of `known`; raises QLoRAError
    said = str(row.get(key)).split(' ')[0]
    if said not in known: raise QLoRAError(f"{key} must be one of {', '.join(known)}, got {row.get(key)!r}")
    return said

def code_of(row)->Code:
    "How the stack of a row computes"
    where = f"{row.get('framework')} {row.get('software')}".lower()
    fused = bool(row.get('compiled')) or any(name in where for name in FUSED)
    expand = GPTQ if str(row.get('quant')).startswith('gptq') else Code.expand
    return Code(fused, any(name in where for name in SLOW), expand)

def targets(row):
    named = row.get('target_modules') or 'all-linear'
    return named if isinstance(named, str) else tuple(named)

def job_of(row): # `row` as `visible` gives it → Job; raises QLoRAError
    "The job of a row"
    missing = [k for k in ('model_config', 'gpu', 'method', 'micro_batch', 'seq_len') if not row.get(k)]
    if missing: raise QLoRAError(f"the row has no {', '.join(missing)}")
    bad = next((k for k in ('micro_batch', 'seq_len') if type(row[k]) not in (int, float) or row[k]<1), None)
    if bad: raise QLoRAError(f'{bad} must be a positive number, got {row[bad]!r}')
    length,dtype = round(row['seq_len']),DTYPES[chosen(dict(compute_dtype='bfloat16')|row, 'compute_dtype', DTYPES)]
    method = chosen(row, 'method', ('qlora', 'lora', 'full'))
    quant = chosen(dict(quant='none')|row, 'quant', ('none', *STORED))
    arch = from_config({**row['model_config'], 'max_position_embeddings': length}, row.get('model') or '')
    asked = {} if method=='full' else dict(r=row.get('lora_r') or 16, target_modules=targets(row))
    optim = next(name for said,name in OPTIMIZERS if said in str(row.get('optimizer') or '').lower())
    if 'raw loop' in str(row.get('framework')) and optim=='adamw_torch_fused': optim = 'adamw_torch' # PyTorch's own default
    code = stack(upcast='all' if row.get('fp32_head') else 'none', autocast=None, adapter_dtype=dtype, loss='full_logits')
    attention = 'eager' if str(row.get('attn_impl')).startswith('eager') else 'sdpa'
    return make_job(arch, 'full' if method=='full' else 'lora', STORED.get(quant, dtype), double_quant=bool(row.get('double_quant')), batch=round(row['micro_batch']),
        length=length, checkpointing=bool(row.get('grad_checkpointing')), attention=attention, dtype=dtype, optim=optim, accumulation=row.get('grad_accum') or 1, stack=code, **asked)

def device_of(row): # → Device; raises QLoRAError
    "The GPU, with or without its size"
    named = str(row.get('gpu'))
    try: return gpu(named)
    except QLoRAError as e:
        try: return gpu(named.rpartition(' ')[0])
        except QLoRAError: raise e from None

def predict(row): # → Step, and what a fit needs: amounts, rates, code, AMD or not; raises QLoRAError
    "The predictor; it is given what `visible` leaves of a row"
    job,device,code = job_of(row),device_of(row),code_of(row)
    step = step_time(job, device, code)
    if step is None: raise QLoRAError(f'no speed is known for {job.dtype} on {device.name}')
    return step,device,(amounts(job, code), rates(device), code, device.kind=='rocm')

def on_several(row): # → number of GPUs, how they share, seconds at best and at worst, what limits them; raises QLoRAError
    "The same for a row of several GPUs, with what they send each other"
    n,how,job,device = gpus_of(row),sharding_of(row),job_of(row),device_of(row)
    step = step_time(job, device, code_of(row), n if how=='fsdp' else 1)
    sent = traffic(job, device, n, how)
    if step is None: raise QLoRAError(f'no speed is known for {job.dtype} on {device.name}')
    if sent is None: raise QLoRAError(f'ran on {n} GPUs: more than one machine')
    limited,(low,high) = shared(step, sent)
    return n,how,low,high,limited.limit

def judge(row, number):
    "One row of the report"
    row = row if isinstance(row, dict) else {}
    out = dict(id=str(row.get('id') or f'row {number}'), gpu=str(row.get('gpu')), method=str(row.get('method')), measured_seconds=None, predicted_seconds=None, low=None,
        high=None, inside=None, skipped='', apart='', tokens=0, case=None, spread=None, several=None)
    try:
        out['measured_seconds'] = measured(row)
        step,device,case = predict(visible(row))
        several = on_several(visible(row)) if gpus_of(row)>1 else None
    except QLoRAError as e: return out|dict(skipped=str(e))
    except Exception as e: return out|dict(skipped=f'{type(e).__name__}: {e}') # A row that is malformed in a way not thought of
    low,high = step.range
    apart = 'AMD GPU' if device.kind=='rocm' else 'tokens estimated' if row.get('quality')=='C' else ''
    if several and several[1]!='ddp':
        apart,(low,high) = 'several GPUs',several[2:4]
        step = replace(step, seconds=math.sqrt(low*high))
    return out|dict(gpu=device.name, predicted_seconds=step.seconds, low=low, high=high, inside=low<=out['measured_seconds']<=high, apart=apart, case=case,
        tokens=row['micro_batch']*row['seq_len'], spread=step.spread, several=several)

def errors(rows): return [abs(math.log(r['measured_seconds']/r['predicted_seconds'])) for r in rows]

def spread(errors):
    "Median, 90th percentile and worst, as factors"
    e = sorted(errors)
    return dict(n=len(e), median=math.exp(statistics.median(e)), p90=math.exp(e[max(0, -(-9*len(e)//10)-1)]), worst=math.exp(e[-1]))

def fit(rows, start=FITTED):
    "The constants that fit rows best: each in turn is moved by a factor, as long as that helps"
    weights = {name: 1/math.sqrt(sum(r['gpu']==name for r in rows)) for name in {r['gpu'] for r in rows}} # A GPU with many rows does not decide alone
    def loss(fitted):
        off = [(r, abs(math.log(r['measured_seconds']/seconds(*r['case'][:3], fitted, r['case'][3])[0]))) for r in rows]
        return sum(weights[r['gpu']]*min(e, .6)**1.5 for r,e in off)
    best,least,step = start,loss(start),.3
    while step>.01:
        moved = False
        for name,value in asdict(start).items():
            for factor in (1+step, 1/(1+step)):
                new = replace(best, **{name: getattr(best, name)*factor})
                if (now := loss(new))<least-1e-9: best,least,moved = new,now,True
        if not moved: step /= 2
    return best

def left_out(rows): # → {GPU: its errors, with constants fitted to the other GPUs}
    "How well a GPU is predicted that the constants have not seen"
    out = {}
    for name in sorted({r['gpu'] for r in rows}):
        mine,others = [r for r in rows if r['gpu']==name],[r for r in rows if r['gpu']!=name]
        if len(others)<FEWEST: continue
        fitted = fit(others)
        out[name] = [abs(math.log(r['measured_seconds']/seconds(*r['case'][:3], fitted, r['case'][3])[0])) for r in mine]
    return out

def size(tokens):
    "Tokens of one pass, as a class"
    low = max((s for s in SIZES if s<=tokens), default=0)
    high = min((s for s in SIZES if s>tokens), default=None)
    return f'{low:,} to {high:,} tokens' if high else f'{low:,} tokens and more'

def by(rows, key):
    "One line for each class of rows"
    for name in sorted({key(r) for r in rows}):
        mine = [r for r in rows if key(r)==name]
        s = spread(errors(mine))
        ratio = statistics.median(r['measured_seconds']/r['predicted_seconds'] for r in mine)
        yield name,s['n'],f"{sum(r['inside'] for r in mine)} of {s['n']}",f'{ratio:.2f}',*(f'×{s[k]:.2f}' for k in ('median', 'p90', 'worst'))

HEAD = ('rows', 'inside', 'measured/predicted', 'median', 'p90', 'worst')
def table(rows, title, key): return text_table(list(by(rows, key)), (title, *HEAD), num=(1, 2, 3, 4, 5, 6))

def line(r):
    took = '' if r['measured_seconds'] is None else f"{r['measured_seconds']:.3f}"
    known = (f"{r['predicted_seconds']:.3f}", f"{r['low']:.3f} to {r['high']:.3f}", 'inside' if r['inside'] else 'outside') if r['low'] else ('', '', r['skipped'])
    return r['id'] if len(r['id'])<66 else '…'+r['id'][-65:],took,*known,r['apart']

def line_of_several(r):
    n,how,low,high,limit = r['several']
    took = r['measured_seconds']
    off = 'inside' if low<=took<=high else f'×{took/high:.2f} the longest' if took>high else f'×{took/low:.2f} the shortest'
    return r['id'] if len(r['id'])<66 else '…'+r['id'][-65:],f"{n} × {r['gpu']}",how,f'{took:.3f}',f'{low:.3f} to {high:.3f}',off,limit

def table_of_several(rows):
    held = sum(r['several'][2]<=r['measured_seconds']<=r['several'][3] for r in rows)
    head = ('row', 'GPUs', '', 'seconds', 'range', '', 'limited by')
    title = f'Several GPUs, a micro-batch on each: {held} of {len(rows)} inside their range, apart'
    return text_table([line_of_several(r) for r in rows], head, title, num=(3, 4))

def report(rows):
    "Rows, then errors by class"
    judged,apart = [r for r in rows if r['low'] and not r['apart']],[r for r in rows if r['low'] and r['apart'] and r['apart']!='several GPUs']
    shared = [r for r in rows if r['several']]
    out = [text_table([line(r) for r in rows], ('row', 'seconds', 'predicted', 'range', '', 'apart'), num=(1, 2, 3))]
    if judged:
        out += [table(judged, title, key) for title,key in (('GPU', lambda r: r['gpu']), ('method', lambda r: r['method']), ('tokens of one pass', lambda r: size(r['tokens'])))]
        out.append(table(judged, '', lambda r: 'all judged rows'))
    if apart: out.append('Apart, not judged:\n'+table(apart, 'GPU', lambda r: f"{r['gpu']} ({r['apart']})"))
    if shared: out.append(table_of_several(shared))
    known = left_out([*judged, *(r for r in apart if r['apart']=='AMD GPU')])
    unseen = [(name, s['n'], *(f'×{s[k]:.2f}' for k in ('median', 'p90', 'worst'))) for name,s in ((n, spread(e)) for n,e in known.items())]
    if unseen: out.append(text_table(unseen, ('left out of the fit', 'rows', 'median', 'p90', 'worst'), num=(1, 2, 3, 4)))
    skipped = [r for r in rows if r['skipped']]
    return '\n\n'.join([*out, f"{len(judged)} rows judged, {len(rows)-len(judged)-len(skipped)} apart, {len(skipped)} skipped."])

def within(rows): # → what is outside the limits
    "The judged rows against the limits"
    judged = [r for r in rows if r['low'] and not r['apart']]
    if not judged: return ['no row could be judged']
    s,t4 = spread(errors(judged)),[r for r in judged if r['gpu']=='T4']
    held = sum(r['inside'] for r in judged)/len(judged)
    bad = [f'{k} ×{s[k]:.3f} is above ×{LIMITS[k]}' for k in ('median', 'p90') if s[k]>LIMITS[k]]
    if t4 and (m := spread(errors(t4))['median'])>LIMITS['t4']: bad.append(f"median of the T4 ×{m:.3f} is above ×{LIMITS['t4']}")
    if held<LIMITS['inside']: bad.append(f"{held:.1%} of the rows are inside their range, below {LIMITS['inside']:.0%}")
    return bad+[f"{name} has a range of ÷×{wide}, above {LIMITS['spread']}" for name,wide in SPREAD.items() if wide>LIMITS['spread']]

def read(path): # → rows; raises QLoRAError
    "The rows of a file: a list, or a list under `rows`"
    try: found = json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError) as e: raise QLoRAError(f'{path} cannot be read as JSON: {e}') from e
    found = found.get('rows') if isinstance(found, dict) else found
    if not isinstance(found, list): raise QLoRAError(f'{path} must hold a list of rows, in the schema of measured_time.json')
    return found

def main(argv=None): # → exit status
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('file', help='rows in the schema of measured_time.json')
    p.add_argument('--json', metavar='OUT', help='write the rows: id, measured_seconds, predicted_seconds, low, high, inside, skipped')
    p.add_argument('--fit', action='store_true', help='print the constants that fit the rows of this file best')
    args = p.parse_args(argv)
    try: rows = [judge(row, i) for i,row in enumerate(read(args.file), 1)]
    except QLoRAError as e: return print(e, file=sys.stderr) or 2
    print(report(rows))
    if args.fit: print(f"\nFitted to these rows: {fit([r for r in rows if r['low'] and r['apart']!='tokens estimated'])}")
    if args.json:
        keys = ('id', 'measured_seconds', 'predicted_seconds', 'low', 'high', 'inside', 'skipped')
        Path(args.json).write_text(json.dumps([{k: r[k] for k in keys} for r in rows], indent=1), encoding='utf-8')
    bad = within(rows)
    print('\n'+('Within the limits.' if not bad else 'Outside the limits:\n  '+'\n  '.join(bad)))
    return int(bool(bad))

if __name__=='__main__': sys.exit(main())
