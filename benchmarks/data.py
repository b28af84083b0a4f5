"""From a file of rows to tokens and labels: ours against `datasets.map` with TRL's preparation; and how many trained tokens per second batches of several kinds reach.

Preparation: each variant is a process of its own, with empty caches, on the same JSON-lines file of prompts and completions, and ends with a dataset of token
ids and labels on disk. Reported are rows per second and the growth over the imports of the resident set and, of it, of the process's own memory: the rest are pages
of mapped files, which the system takes back when it needs them. The same for a file of a tenth.
Chats: one row of 330 turns against one rendering and one tokenisation of it, in CPU time; and 1,000 chats of some nine turns, ours beside TRL's preparation (which
trains all tokens, so that it needs no borders): CPU time and peak memory of the process.
Batches: the demo model, 4-bit with adapters, on rows of skewed length; forward and backward on batches at random, grouped by length, and packed; the figure is
trained tokens per second.

    python benchmarks/data.py [--rows 200000] [--steps 12] [--skip prepare|chats|batches] [--json OUT]"""
import argparse, json, os, random, re, resource, subprocess, sys, tempfile, threading, time
from pathlib import Path

WORDS = '''pump valve motor filter sensor door lift boiler fan belt leaks stops hums trips drips heats cools shakes again today since Monday please send someone before the
deadline our plant near the river old new green first second shift manager wrote that number twelve will not start and nobody knows why'''.split()

def write_rows(path, n, seed=0):
    "Rows of some twenty to two hundred words"
    rng = random.Random(seed)
    with open(path, 'w') as f:
        for i in range(n):
            k = min(200, int(rng.lognormvariate(3, .7))+5)
            row = dict(prompt=f'Ticket {i}: '+' '.join(rng.choices(WORDS, k=k)), completion=' '.join(rng.choices(WORDS, k=max(3, k//4)))+f' ({i})')
            f.write(json.dumps(row)+'\n')

def write_chats(path, n, seed=0):
    "Chats of some nine turns of 40 to 120 words"
    rng = random.Random(seed)
    with open(path, 'w') as f:
        for i in range(n): f.write(json.dumps(dict(messages=chat(rng, 2*rng.randint(3, 6), i)))+'\n')

def chat(rng, turns, i=0):
    def words(): return ' '.join(rng.choices(WORDS, k=rng.randint(40, 120)))
    return [dict(role='assistant' if k%2 else 'user', content=f'{i}.{k}: {words()}') for k in range(turns)]

def rss(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024
def now(what): return int(re.search(rf'{what}:\s+(\d+)', Path('/proc/self/status').read_text())[1])*1024

class Watch:
    "The largest own memory inside, read every tenth of a second"
    def __enter__(self):
        self.before = self.most = now('RssAnon')
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()
        return self
    def look(self):
        while not self.done.wait(.1): self.most = max(self.most, now('RssAnon'))
    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
        self.grown = max(self.most, now('RssAnon'))-self.before

def ours(path):
    import datasets
    from qlora_nb import parse
    from qlora_nb.tokens.gate import prepare
    from qlora_nb.training.loading import load_tokenizer
    from qlora_nb.quiet import quiet
    assert datasets
    tok = load_tokenizer('demo')
    tok('warm up')
    before,begun,cpu = now('VmRSS'),time.perf_counter(),time.process_time()
    with quiet(), Watch() as w: d = prepare(parse(f'model: demo\ndata: {{train: {path}}}\ntraining: {{max_length: 8192}}'), tok).train
    return dict(rows=len(d), seconds=time.perf_counter()-begun, cpu=time.process_time()-cpu, peak=rss(), grown=rss()-before, own=w.grown, learned=d.learned)

def trl(path):
    "What a person writes who follows TRL's documentation; a model of one tiny layer, since the trainer prepares the rows when it is made"
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer
    from qlora_nb.facts.demo import model_path
    disable_progress_bars()
    tok = AutoTokenizer.from_pretrained(model_path())
    c = LlamaConfig(vocab_size=len(tok), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1)
    model = LlamaForCausalLM(c)
    tok('warm up')
    before,begun,cpu = now('VmRSS'),time.perf_counter(),time.process_time()
    with tempfile.TemporaryDirectory() as out:
        with Watch() as w:
            rows = load_dataset('json', data_files=path, split='train')
            if 'prompt' in rows.column_names:
                rows = rows.map(lambda r: dict(prompt=[dict(role='user', content=r['prompt'])], completion=[dict(role='assistant', content=r['completion'])]))
            t = SFTTrainer(model, SFTConfig(out, use_cpu=True, bf16=False, report_to='none', max_length=8192), train_dataset=rows, processing_class=tok)
        n,seconds,cpu = len(t.train_dataset),time.perf_counter()-begun,time.process_time()-cpu
        grown,peak = rss()-before,rss()
        name = 'labels' if 'labels' in t.train_dataset.column_names else 'input_ids'
        learned = sum(len(b)-b.count(-100) for o in t.train_dataset.select_columns(name).iter(1000) for b in o[name])
    return dict(rows=n, seconds=seconds, cpu=cpu, peak=peak, grown=grown, own=w.grown, learned=learned)

def clocked(f, times=5):
    "The least CPU time"
    def once():
        begun = time.process_time()
        f()
        return time.process_time()-begun
    return min(once() for _ in range(times))

def long_chat(turns):
    "One row of many turns, and one rendering with one tokenisation of it"
    from qlora_nb.tokens.labels import encode
    from qlora_nb.tokens.templates import choose_template
    from qlora_nb.training.loading import load_tokenizer
    from qlora_nb.quiet import quiet
    tok = load_tokenizer('demo')
    template,row = choose_template(tok),chat(random.Random(1), int(turns))
    with quiet():
        once = clocked(lambda: tok([template.text(tok, row)], add_special_tokens=False))
        return dict(once=once, encoded=clocked(lambda: encode(tok, template, row)))

def skewed(n, seed=1):
    "Short answers to prompts of very unequal length: as in collections of instructions, three rows of ten bring a passage to read, the others a line or two"
    rng = random.Random(seed)
    def words(low, high): return ' '.join(rng.choices(WORDS, k=rng.randint(low, high)))
    return [dict(prompt=words(100, 350) if rng.random()<.3 else words(4, 30), completion=words(4, 24)) for _ in range(n)]

def order(kind, lengths, size):
    "Row numbers, batch by batch"
    from qlora_nb.tokens.batching import grouped, shuffled
    i = (grouped(lengths, size) if kind=='grouped' else shuffled(range(len(lengths)))).tolist()
    return [i[a:a+size] for a in range(0, len(i), size)]

def batches(steps, size=8, cap=512):
    "Seconds and trained tokens of `steps` padded batches of each kind, and of packed sequences that hold as many rows"
    from types import SimpleNamespace as S
    from peft import get_peft_model
    from trl import pack_dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
    from qlora_nb import parse
    from qlora_nb.tokens.gate import prepare
    from qlora_nb.training.loading import load_base, load_tokenizer
    from qlora_nb.methods.lora import lora_config
    from qlora_nb.quiet import quiet
    from qlora_nb.tasks.loss import trained_loss
    cfg = parse(f'model: demo\ndata: {{train: rows}}\ntraining: {{max_length: {cap}, per_device_train_batch_size: {size}}}')
    with quiet():
        tok = load_tokenizer('demo')
        d = prepare(cfg, tok, dict(rows=skewed(steps*size))).train
        base = load_base('demo', cfg, S(kind='cpu'), 'bfloat16')
        model = get_peft_model(base, lora_config(cfg.lora, base)).train()
    rows,out = list(d.dataset),{}
    padded,free = (DataCollatorForLanguageModeling(pad_token_id=tok.pad_token_id, padding_free=o) for o in (False, True))
    packed = list(pack_dataset(d.dataset.with_format('arrow'), cap, 'bfd').with_format(None))
    per = max(1, round(size*len(packed)/len(rows)))
    made = {k: [padded([rows[i] for i in b]) for b in order(k, d.kept, size)] for k in ('random', 'grouped')}
    made['packed'] = [free(packed[a:a+per]) for a in range(0, len(packed), per)]
    made['single rows'] = [padded([r]) for r in rows]
    for kind,bs in made.items():
        step(model, bs[0], trained_loss)
        begun = time.perf_counter()
        learned = sum(step(model, b, trained_loss) for b in bs)
        positions = sum(b['input_ids'].numel() for b in bs)
        out[kind] = dict(trained_per_second=learned/(time.perf_counter()-begun), padding=1-d.tokens/positions, batches=len(bs))
    return out

def step(model, batch, loss):
    "Forward and backward of one batch; the trained tokens in it"
    value,n,_ = loss(model, {k: v for k,v in batch.items() if k in ('input_ids', 'labels', 'attention_mask', 'position_ids')})
    value.backward()
    model.zero_grad()
    return int(n)

def child(what, arg):
    "The result of one variant in a process with empty caches"
    from qlora_nb.facts.demo import model_path
    with tempfile.TemporaryDirectory() as tmp:
        cache = Path(tmp)/'cache'
        cache.mkdir()
        (cache/model_path().name).symlink_to(model_path())
        env = dict(os.environ, HF_HUB_OFFLINE='1', HF_DATASETS_CACHE=f'{tmp}/hf', QLORA_NB_CACHE=str(cache))
        o = subprocess.run([sys.executable, __file__, '--one', what, str(arg)], capture_output=True, text=True, env=env, cwd=tmp)
    if o.returncode: raise SystemExit(o.stderr[-3000:])
    return json.loads(o.stdout.splitlines()[-1])

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--rows', type=int, default=200_000)
    ap.add_argument('--steps', type=int, default=12)
    ap.add_argument('--skip', action='append', default=[], choices=('prepare', 'chats', 'batches'))
    ap.add_argument('--only', choices=('ours', 'trl'), help='Prepare with one of the two, e.g. a million rows with ours')
    ap.add_argument('--json')
    ap.add_argument('--one', nargs=2, help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.one: return print(json.dumps(dict(ours=ours, trl=trl, long_chat=long_chat, batches=lambda n: batches(int(n)))[a.one[0]](a.one[1])))
    out = {}
    if 'prepare' not in a.skip: prepared(a.rows, [a.only] if a.only else ['ours', 'trl'], out)
    if 'chats' not in a.skip: chats(out)
    if 'batches' not in a.skip: compared(child('batches', a.steps), out)
    if a.json: Path(a.json).write_text(json.dumps(out, indent=1))

def prepared(n, variants, out):
    with tempfile.TemporaryDirectory() as tmp:
        for rows in (n//10, n):
            path = f'{tmp}/rows{rows}.jsonl'
            write_rows(path, rows)
            print(f'{rows:,} rows, {Path(path).stat().st_size/2**20:.1f} MiB')
            for v in variants:
                o = out[f'{v} {rows}'] = child(v, path)
                print(f"  {v:5} {o['rows']/o['seconds']:8,.0f} rows/s, grown by {o['grown']/2**20:6.0f} MiB, of it {o['own']/2**20:6.0f} MiB own, {o['learned']:,} trained tokens", flush=True)
        if len(variants)==2:
            assert out[f'ours {n}']['rows']==out[f'trl {n}']['rows']==n
            print(f"  ours / TRL: {out[f'trl {n}']['seconds']/out[f'ours {n}']['seconds']:.2f} times the rows per second")

def chats(out, n=1000, turns=330):
    o = out['long_chat'] = child('long_chat', turns)
    print(f"{turns} turns: {1000*o['encoded']:.0f} ms, one rendering and one tokenisation {1000*o['once']:.0f} ms: {o['encoded']/o['once']:.2f} times")
    with tempfile.TemporaryDirectory() as tmp:
        path = f'{tmp}/chats.jsonl'
        write_chats(path, n)
        print(f'{n:,} chats, {Path(path).stat().st_size/2**20:.1f} MiB')
        both = {v: child(v, path) for v in ('ours', 'trl')}
    for v,o in both.items(): print(f"  {v:5} {o['cpu']:6.1f} s of CPU, peak {o['peak']/2**20:6.0f} MiB, {o['learned']:,} trained tokens")
    out['chats'] = both
    mine,theirs = both['ours'],both['trl']
    print(f"  ours / TRL: {mine['cpu']/theirs['cpu']:.2f} times the CPU time, {mine['peak']/theirs['peak']:.2f} times the peak memory")

def compared(o, out):
    out['batches'] = o
    print('Batches of 8 rows of skewed length, demo model, forward and backward')
    for kind in ('random', 'grouped', 'packed', 'single rows'):
        print(f"  {kind:12} {o[kind]['trained_per_second']:7.1f} trained tokens/s, {o[kind]['padding']:.0%} padding, {o[kind]['batches']} batches")
    r = {k: o[k]['trained_per_second'] for k in ('random', 'grouped', 'packed', 'single rows')}
    print(f"  against random: grouped {r['grouped']/r['random']:.2f}, packed {r['packed']/r['random']:.2f}; packed against grouped {r['packed']/r['grouped']:.2f}")

if __name__=='__main__': main()
