"""Two other estimates of training time against ours, on the same published step times.

ftuneai 0.4.1 (the planner called ftune) is installed into an environment of its own and asked through its Python interface, with the shape and the number
of parameters of each row. The formula of `estimate_cost.py` in github.com/huggingface/skills (skills/huggingface-llm-trainer/scripts, commit 3ba17cd) is
evaluated here: 0.1 h for each billion parameters and thousand rows on an A10G, times a factor for the GPU; it knows no lengths. Rows on GPUs that a peer
does not know are counted, not guessed. Our nine constants were fitted to these rows, so what they predict for a GPU left out of the fit stands beside them.

    python benchmarks/peers_time.py [benchmarks/data/measured_time.json] [--venv DIR] [--markdown]"""
import argparse, json, statistics, subprocess, sys, venv
from math import exp, log
from pathlib import Path

HERE = Path(__file__).parent
FTUNE = 'ftuneai==0.4.1'
THEIRS = {'A100 80GB': 'A100-80GB', 'A100 40GB': 'A100-40GB', 'H100 80GB': 'H100-80GB', 'H200': 'H200-141GB', 'T4': 'T4-16GB', 'A10G': 'A10G-24GB', 'L4': 'L4-24GB',
    'RTX 4090': 'RTX-4090-24GB', 'RTX 4080': 'RTX-4080-16GB', 'RTX 3090': 'RTX-3090-24GB', 'V100 16GB': 'V100-16GB', 'V100 32GB': 'V100-32GB'}
FACTORS = {'T4': 2.0, 'L4': 1.2, 'A10G': 1.0, 'A100 80GB': 0.7} # Of estimate_cost.py: t4-small, l4x1, a10g-large, a100-large
ROWS = 10**6 # Micro-batches in one question, since ftune rounds its hours

# This part runs in the peer's own environment and imports nothing of ours.

def ask_ftune(q):
    "Seconds of one micro-batch"
    from ftuneai.core.models import FineTuneMethod, ModelSpec, TrainingConfig
    from ftuneai.core.time import TimeEstimator
    from ftuneai.loader import load_gpus
    shape = ModelSpec(q['model'], q['parameters'], q['width'], q['layers'], q['heads'], q['heads'], q['inner'], q['vocabulary'], q['length'], q['dtype'])
    config = TrainingConfig(q['model'], FineTuneMethod(q['method']), batch_size=q['batch'], seq_length=q['length'])
    hours = TimeEstimator(shape, config).estimate(load_gpus()[q['gpu']], q['batch']*ROWS, epochs=1).total_hours
    return hours*3600/ROWS

def answer():
    "Questions on stdin, answers on stdout"
    out = []
    for q in json.load(sys.stdin):
        try: out.append(ask_ftune(q))
        except KeyError as e: out.append(f'no GPU {e}')
    json.dump(out, sys.stdout)

# This part runs with ours.

def question(row, arch, device, job):
    "What ftune is told of a row"
    return dict(model=arch.name, parameters=arch.num_parameters, width=arch.hidden_size, layers=arch.num_hidden_layers, heads=arch.num_attention_heads,
        inner=arch.intermediate_size, vocabulary=arch.vocab_size, length=job.length, batch=job.batch, dtype=job.dtype, method=row['method'],
        gpu=THEIRS.get(device.name, device.name))

def of_script(arch, device, job):
    "Seconds of one micro-batch by estimate_cost.py, or None"
    if device.name not in FACTORS: return None
    return .1*3600*arch.num_parameters/1e9*job.batch/1000*FACTORS[device.name]

def ask_peer(questions, folder):
    python = folder/'bin'/'python'
    if not (folder/'ready').exists():
        venv.create(folder, with_pip=True)
        subprocess.run([str(python), '-m', 'pip', 'install', '-q', '--disable-pip-version-check', FTUNE], check=True)
        (folder/'ready').touch()
    done = subprocess.run([str(python), str(Path(__file__).resolve()), '--answer'], input=json.dumps(questions), capture_output=True, text=True)
    if done.returncode: sys.exit(f'ftune did not answer: {done.stderr.strip().splitlines()[-1]}')
    return json.loads(done.stdout)

def judged(path, folder):
    "The judged rows of published_time.py, each with the answers of the peers"
    from published_time import device_of, job_of, judge, read, visible
    rows = [(row, judge(row, i)) for i,row in enumerate(read(path), 1)]
    rows = [(row, mine) for row,mine in rows if mine['low'] and not mine['apart']]
    asked = [(job_of(visible(row)), device_of(visible(row))) for row,_ in rows]
    said = ask_peer([question(row, j.arch, d, j) for (row,_),(j,d) in zip(rows, asked)], folder)
    for (row,mine),(job,device),theirs in zip(rows, asked, said):
        yield mine|dict(ftune=theirs if isinstance(theirs, float) else None, script=of_script(job.arch, device, job))

def factors(rows, key): return sorted(abs(log(r['measured_seconds']/r[key])) for r in rows if r[key])

def words(errors):
    "Median, 90th percentile and worst, as factors"
    if not errors: return 'no row'
    p90 = errors[max(0, -(-9*len(errors)//10)-1)]
    return f'×{exp(statistics.median(errors)):.2f} / ×{exp(p90):.2f} / ×{exp(errors[-1]):.1f} ({len(errors)} rows)'

def lines(rows):
    "One line for each estimate"
    from published_time import left_out
    unseen = sorted(e for errors in left_out(rows).values() for e in errors)
    groups = {'T4': [r for r in rows if r['gpu']=='T4'], 'A100 80GB': [r for r in rows if r['gpu']=='A100 80GB'], 'all': rows}
    for title,key in (('qlora_nb', 'predicted_seconds'), ('ftune (ftuneai 0.4.1)', 'ftune'), ("Hugging Face's estimate_cost.py", 'script')):
        yield title,*(words(factors(group, key)) for group in groups.values())
    yield 'qlora_nb, each GPU left out of the fit','','',words(unseen)

HEAD = ('estimate', 'T4', 'A100 80GB', 'all')

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('file', nargs='?', default=HERE/'data'/'measured_time.json')
    p.add_argument('--venv', type=Path, default=Path('~/.cache/qlora_nb/peers_time').expanduser())
    p.add_argument('--markdown', action='store_true')
    p.add_argument('--answer', action='store_true', help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.answer: return answer()
    from qlora_nb.render import text_table
    rows = list(judged(a.file, a.venv))
    table = list(lines(rows))
    if a.markdown: return print('\n'.join(f"| {' | '.join(line)} |" for line in (HEAD, ('---',)*4, *table)))
    closer = {key: [abs(log(r['measured_seconds']/r['predicted_seconds']))<abs(log(r['measured_seconds']/r[key])) for r in rows if r[key]] for key in ('ftune', 'script')}
    print(text_table(table, HEAD, 'factor between measured and predicted seconds: median / p90 / worst'))
    for key,wins in closer.items(): print(f'Row by row qlora_nb is closer in {sum(wins)} of {len(wins)} rows against {key}')

if __name__=='__main__': main()
