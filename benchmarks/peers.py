"""The two best memory planners on PyPI against ours, on the same published measurements.

fitcheck-llm 0.3.1 and canifinetune 0.4.1 are installed into an environment of their own and asked through their Python interfaces. Every planner sees the
same thing: model shape with its exact number of parameters, method, batch, length, attention, optimizer, dtypes; not the id, source, value or notes
of a row. What is compared first is the peak of tensors: fitcheck's total without its overhead, canifinetune's without CUDA overhead and safety margin. A row that a
planner cannot express is counted, not guessed. Both planners were fitted by their authors to rows of this file, which is said beside their figures.

    python benchmarks/peers.py [benchmarks/data/measured_memory.json] [--engine formula|trace] [--venv DIR] [--markdown] [--json OUT]"""
import argparse, json, statistics, subprocess, sys, venv
from pathlib import Path

HERE = Path(__file__).parent
PEERS = {'fitcheck-llm': '0.3.1', 'canifinetune': '0.4.1'}
NEEDS = ('huggingface-hub', 'pydantic', 'platformdirs', 'pyyaml') # What the two import for an estimate
FITTED = {'fitcheck-llm': 'fitcheck', 'canifinetune': 'can-i-finetune'} # Whose rows the authors fitted to
SHORT = dict(float16='fp16', bfloat16='bf16', float32='fp32')


# This part runs in the peers' own environment and imports nothing of ours.

def ask_fitcheck(q):
    "Tensors and total in bytes"
    from fitcheck import ModelConfig, TrainingConfig, estimate, get_gpu
    c = q['config']
    heads = c['num_attention_heads']
    m = ModelConfig(q['model'], q['parameters'], c['hidden_size'], c['num_hidden_layers'], heads, c['num_key_value_heads'], c['intermediate_size'], c['vocab_size'],
        c.get('head_dim') or c['hidden_size']//heads, bool(c.get('tie_word_embeddings')))
    t = TrainingConfig(precision=q['dtype'], quantization=q['quant'], double_quant=q['double_quant'], optimizer='adam8bit' if '8bit' in q['optim'] else 'adamw',
        batch_size=q['batch'], seq_len=q['length'], lora_rank=q['r'], lora_targets=q['targets'] or ['q_proj', 'v_proj'], grad_checkpoint=q['checkpointing'], flash_attn=q['attention']!='eager')
    r = estimate(m, t, get_gpu('t4') if 'T4' in q['gpu'] else get_gpu(q['gpu'], vram_mib=round(q['memory']/2**20)))
    return (r.total_mib-r.overhead_mib)*2**20, r.total_mib*2**20

def ask_canifinetune(q):
    "Tensors and total in bytes"
    from canifinetune.estimator.formulas import default_target_modules
    from canifinetune.estimator.memory import EstimateRequest, estimate
    family,method = q['config']['model_type'],'full' if q['r'] is None else 'lora' if q['quant']=='none' else 'qlora'
    scope = next((s for s in ('attention', 'all_linear', 'conservative') if sorted(default_target_modules(family, scope=s, strict=True))==sorted(q['targets'] or ())), None)
    if method!='full' and scope is None: raise ValueError(f"no target scope for {', '.join(q['targets'])}")
    r = estimate(EstimateRequest(model_id=q['model'], method=method, seq_len=q['length'], micro_batch_size=q['batch'], base_dtype=q['dtype'],
        quantization=q['quant']+'_double_quant'*q['double_quant'] if method=='qlora' else 'none', lora_rank=q['r'] or 16, lora_target_scope=scope or 'attention',
        optimizer=q['optim'] if q['optim'] in ('paged_adamw_8bit', 'adamw_8bit', 'sgd') else 'adamw_torch', gradient_checkpointing=q['checkpointing'],
        attention_implementation=q['attention'], gpu_vram_gb=q['memory']/2**30, override=dict(q['config'], family=family, total_params=q['parameters']), use_network=False))
    m = r.memory
    return (m.total_estimated_gb-m.cuda_overhead_gb-m.safety_margin_gb)*2**30, (m.total_estimated_gb-m.safety_margin_gb)*2**30

def answer():
    "Questions on stdin, answers on stdout"
    out = []
    for q in json.load(sys.stdin):
        row = {}
        for name,ask in (('fitcheck-llm', ask_fitcheck), ('canifinetune', ask_canifinetune)):
            try: row[name] = ask(q)
            except Exception as e: row[name] = f'{type(e).__name__}: {str(e).splitlines()[0][:120]}'
        out.append(row)
    json.dump(out, sys.stdout)


# This part runs with ours.

def question(row):
    "What every planner is told of a row"
    from published_memory import job_of, visible
    from qlora_nb.errors import QLoRAError
    from qlora_nb.facts.hardware import gpu
    j = job_of(visible(row))
    try: memory = gpu(row['gpu'].removeprefix('NVIDIA ')).memory
    except QLoRAError: memory = 24*2**30
    c = dict(row['model_config'])
    c.setdefault('num_key_value_heads', c['num_attention_heads'])
    full,quantised = not j.method.adapters,j.storage.quantised
    return dict(model=row['model'], config=c, parameters=j.arch.num_parameters, quant=j.storage.name if quantised else 'none',
        double_quant=j.storage.double_quant, r=None if full else j.section.r,
        targets=None if full else list(j.section.target_modules), batch=j.batch, length=j.length, checkpointing=j.checkpointing,
        attention=j.attention, optim=j.optim, dtype=SHORT[j.dtype], gpu=row['gpu'], memory=memory)

def environment(folder):
    "The peers' Python, installed when it is not there yet"
    python = folder/'bin'/'python'
    if not (folder/'ready').exists():
        venv.create(folder, with_pip=True)
        pip = [str(python), '-m', 'pip', 'install', '-q', '--disable-pip-version-check']
        subprocess.run([*pip, *NEEDS], check=True)
        subprocess.run([*pip, '--no-deps', *(f'{k}=={v}' for k,v in PEERS.items())], check=True)
        (folder/'ready').touch()
    return python

def ask_peers(rows, folder):
    command,questions = [str(environment(folder)), str(Path(__file__).resolve()), '--answer'],json.dumps([question(r) for r in rows])
    done = subprocess.run(command, input=questions, capture_output=True, text=True)
    if done.returncode: sys.exit(f'the peers did not answer: {done.stderr.strip().splitlines()[-1]}')
    return json.loads(done.stdout)

def ask_ours(row, engine):
    "Tensors in bytes, and the band of reserved memory"
    from published_memory import job_of, visible
    from qlora_nb.planning.fit import peak, reserved
    j = job_of(visible(row))
    p = peak(j, engine)
    return p.tensors, reserved(p, j.attention)

def reserved_of(row):
    a = row.get('also') or {}
    return a['peak_reserved_mib']*2**20 if 'peak_reserved_mib' in a else a['peak_reserved_gib']*2**30 if 'peak_reserved_gib' in a else None

def judged(rows, answers, engine):
    "One dict per row: what was measured and what each planner says"
    from published_memory import family, measured
    for row,said in zip(rows, answers):
        tensors,band = ask_ours(row, engine)
        peers = {k: dict(tensors=v[0], total=v[1]) if isinstance(v, list) else dict(refused=v) for k,v in said.items()}
        taken,whole = reserved_of(row),(row.get('also') or {}).get('process_mib')
        yield dict(id=row['id'], source=family(row['source']), raw=row['source'], measured=measured(row), reserved=taken, process=whole*2**20 if whole else taken,
            ours=dict(tensors=tensors, reserved=band), **peers)

def errors(rows, name, what='tensors', real='measured'): return [r[name][what]/r[real]-1 for r in rows if r[real] and 'refused' not in r[name]]

def summary(e):
    if not e: return ('', '', '')
    e = sorted(abs(x) for x in e)
    return tuple(f'{100*x:.2f} %' for x in (statistics.median(e), e[max(0, -(-9*len(e)//10)-1)], e[-1]))

def tables(rows, engine):
    "(title, head, rows) of each table"
    names = ('ours', *PEERS)
    shown = dict(ours=f'qlora_nb, {engine}', **{k: f'{k} {v}' for k,v in PEERS.items()})
    lines = []
    for source in [*dict.fromkeys(r['source'] for r in rows), 'all']:
        here = [r for r in rows if source in (r['source'], 'all')]
        for n in names:
            own = ' *' if n in FITTED and any(FITTED[n] in r['raw'] for r in here) else ''
            refused = sum('refused' in r[n] for r in here)
            lines.append((source, shown[n]+own, len(here)-refused, refused, *summary(errors(here, n))))
    yield 'Peak of tensors, absolute error',('source', 'planner', 'rows', 'cannot express', 'median', '90 %', 'worst'),lines
    real = [r for r in rows if r['reserved']]
    inside = sum(r['ours']['reserved'][0]<=r['reserved']<=r['ours']['reserved'][1] for r in real)
    wide = statistics.median(r['ours']['reserved'][1]/r['ours']['reserved'][0]-1 for r in real)
    whole = [(shown['ours'], 'reserved', f'{inside} of {len(real)} inside a band {wide:.0%} wide in the median; the band is the range of these rows', '', '', '')]
    whole += [(shown[n], what, 'one number', *summary(errors(real, n, 'total', what))) for n,what in (('fitcheck-llm', 'process'), ('canifinetune', 'reserved'))]
    yield 'Beyond tensors, each by what it says it predicts',('planner', 'predicts', 'answer', 'median', '90 %', 'worst'),whole
    yield 'Row by row: whose tensors are nearer',('against', 'ours nearer', 'theirs nearer'),[(shown[n], *wins(rows, n)) for n in PEERS]

def wins(rows, name):
    "Rows where ours is at least as near, and the others"
    pairs = [(abs(r['ours']['tensors']/r['measured']-1), abs(r[name]['tensors']/r['measured']-1)) for r in rows if 'refused' not in r[name]]
    return sum(a<=b for a,b in pairs), sum(a>b for a,b in pairs)

FOOT = '* The planner was fitted by its authors to rows of this source.'

def as_text(title, head, rows):
    from qlora_nb.render import text_table
    return text_table(rows, head, title)

def as_markdown(title, head, rows):
    return '\n'.join([f'**{title}**', '', f"| {' | '.join(head)} |", '|'+'---|'*len(head), *(f"| {' | '.join(map(str, r))} |" for r in rows)])

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('file', nargs='?', type=Path, default=HERE/'data'/'measured_memory.json')
    ap.add_argument('--engine', choices=('formula', 'trace'), default='formula')
    ap.add_argument('--venv', type=Path, default=Path('~/.cache/qlora_nb/peers').expanduser(), help='environment of the peers; made when it is not there')
    ap.add_argument('--markdown', action='store_true', help='the tables for the README')
    ap.add_argument('--json', type=Path, help='write every row')
    ap.add_argument('--answer', action='store_true', help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.answer: return answer()
    rows = [r for r in json.loads(a.file.read_text()) if r.get('tier')=='A' and r.get('value')]
    found = list(judged(rows, ask_peers(rows, a.venv), a.engine))
    for t in tables(found, a.engine): print((as_markdown if a.markdown else as_text)(*t), end='\n\n')
    print(FOOT)
    for n in PEERS:
        refused = [r[n]['refused'] for r in found if 'refused' in r[n]]
        for why in dict.fromkeys(refused): print(f'{n} cannot express {refused.count(why)} rows: {why}')
    if a.json: a.json.write_text(json.dumps(found, indent=1))

if __name__=='__main__': main()
