"Step times against published runs, the range that is stated, full fine-tuning, prices with their age, sessions, and what a machine measured itself"
import importlib.util, json
from dataclasses import replace
from datetime import date
from statistics import median

import pytest
from conftest import root
from test_resume import ROWS, cell

from qlora_nb import parse, plan
from qlora_nb.facts.hardware import gpu, gpus, rates
from qlora_nb.facts.machine import detect
from qlora_nb.facts.models import find
from qlora_nb.facts.prices import SESSIONS, age, price_notes, session_notes
from qlora_nb.planning.bands import pace_key
from qlora_nb.planning.time import FITTED, GROUPS, NO_ROW, SPREAD, WORTH, cost, grouped, padded, padding, seconds, step_time
from qlora_nb.speed.work import Code, amounts
from qlora_nb.screens.words import middle, short
from qlora_nb.simulation.job import make_job
from qlora_nb.store.folder import read_about, write_about
from qlora_nb.training.start import train

BENCH,TODAY = root/'benchmarks',date(2026, 11, 26)
FILE = BENCH/'data'/'measured_time.json'
JOB = make_job(find('Llama-2-7B'))

def published():
    spec = importlib.util.spec_from_file_location('published_time', BENCH/'published_time.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

p = published()
SOURCE = json.loads(FILE.read_text())
JUDGED = [p.judge(row, i) for i,row in enumerate(SOURCE)]

def on(name, **changes): return replace(JOB, dtype='bfloat16' if gpu(name).bf16 else 'float16', **changes)


def test_published_steps_are_within_the_limits(tmp_path, capsys):
    "Every row has a prediction; the README states what is printed"
    assert p.main([str(FILE), '--json', str(tmp_path/'out.json')])==0
    rows,said = json.loads((tmp_path/'out.json').read_text()),capsys.readouterr().out
    assert [r['id'] for r in rows]==[r['id'] for r in SOURCE] and set(rows[0])=={'id', 'measured_seconds', 'predicted_seconds', 'low', 'high', 'inside', 'skipped'}
    assert not any(r['skipped'] for r in rows) and 'left out of the fit' in said and 'Apart, not judged' in said and said.endswith('Within the limits.\n')
    off = [max(r['measured_seconds']/r['predicted_seconds'], r['predicted_seconds']/r['measured_seconds']) for r in rows]
    assert median(off)<1.07 and sum(r['inside'] for r in rows)/len(rows)>.9
    t4 = [o for o,r in zip(off, SOURCE) if r['gpu']=='T4']
    assert median(t4)<1.1


def test_the_readme_states_the_errors():
    judged = [r for r in JUDGED if not r['apart']]
    unseen,text = p.left_out([r for r in JUDGED if r['apart']!='tokens estimated']),(root/'README.md').read_text()
    assert len(judged)==137
    for name in ('T4', 'A100 80GB', 'H100 80GB', 'L40S', 'RTX 4080', 'RTX 4090'):
        mine = [r for r in judged if r['gpu']==name]
        s,u = p.spread(p.errors(mine)),p.spread(unseen[name])
        inside = sum(r['inside'] for r in mine)
        assert f"| {name} | {len(mine)} | ×{s['median']:.2f} / ×{s['p90']:.2f} | {inside} of {len(mine)} | ×{u['median']:.2f} / ×{u['p90']:.2f} |" in text
    s,inside = p.spread(p.errors(judged)),sum(r['inside'] for r in judged)
    assert f"| all | 137 | ×{s['median']:.2f} / ×{s['p90']:.2f} | {inside} of 137 |" in text


def test_the_constants_are_those_that_fit():
    "Fitted again from where they are, none moves by more than a tenth"
    best = p.fit([r for r in JUDGED if r['apart']!='tokens estimated'])
    for name,value in vars(FITTED).items(): assert .9<getattr(best, name)/value<1.1, name


def test_a_gpu_is_predicted_without_its_rows():
    "The constants of a fit without a GPU, tried on it"
    for name,e in p.left_out([r for r in JUDGED if r['apart']!='tokens estimated']).items(): assert p.spread(e)['median']<1.25, name


def test_the_predictor_sees_no_answer():
    row = SOURCE[0]
    bare = p.visible(row)
    assert not {'seconds_per_micro_batch', 'tokens_per_second', 'published_as', 'id', 'notes'} & set(bare)
    assert p.predict(bare)[0].seconds==p.judge(row|dict(seconds_per_micro_batch=9.), 1)['predicted_seconds']


ODD = [(dict(unit='furlong'), "unknown unit 'furlong'"), (dict(gpu='Voodoo 2'), "no GPU 'Voodoo 2'"), (dict(gpu=None), 'has no gpu'), (dict(model_config=None), 'has no model_config'),
    (dict(model_config={}), 'has no model_config'), (dict(model_config=dict(model_type='llama')), ''), (dict(model_config='llama'), ''), (dict(method='dora'), 'method must be one of'),
    (dict(quant='awq'), 'quant must be one of'), (dict(compute_dtype='fp8'), 'compute_dtype must be one of'), (dict(seq_len='long'), 'seq_len must be'), (dict(micro_batch=-1), 'micro_batch must be'),
    (dict(seconds_per_micro_batch=None), 'no seconds'), (dict(seconds_per_micro_batch='3'), 'no seconds'), (dict(seconds_per_micro_batch=float('nan')), 'no seconds'),
    (dict(gpu='TPU v5e'), 'not supported'), (dict(gpu='L40'), 'no speed is known'), (dict(gpu='T4', compute_dtype='bfloat16'), 'no speed is known')]

@pytest.mark.parametrize('changes,say', ODD, ids=str)
def test_an_odd_row_is_skipped_with_a_reason(changes, say):
    out = p.judge(SOURCE[80]|changes, 1)
    assert say in out['skipped'] and out['skipped'] and out['predicted_seconds'] is None


@pytest.mark.parametrize('row', [None, 3, [], {}, 'row', dict(id=4)], ids=str)
def test_what_is_no_row_is_skipped(row, tmp_path):
    (tmp_path/'rows.json').write_text(json.dumps([row]))
    assert p.main([str(tmp_path/'rows.json')])==1 and p.judge(row, 7)['skipped']


@pytest.mark.parametrize('text', ['', '{}', '3', '{"rows": 1}'])
def test_a_file_without_rows_ends_in_one_line(text, tmp_path, capsys):
    (tmp_path/'rows.json').write_text(text)
    assert p.main([str(tmp_path/'rows.json')])==2 and capsys.readouterr().err.count('\n')==1


def test_milliseconds_are_read_and_extra_keys_are_ignored():
    row = SOURCE[80]
    assert p.judge(row|dict(seconds_per_micro_batch=500, unit='ms', new=1), 1)['measured_seconds']==.5


def test_other_rows_than_those_fitted_to():
    "Measured elsewhere: 1000 rows of 1024 tokens with Qwen2.5-7B on a T4 took 62 minutes with head and norms in float32"
    config = next(r['model_config'] for r in SOURCE if r['id'].startswith('fitcheck-t4-Qwen2.5-7B'))
    row = dict(SOURCE[0], id='x', model_config=config, micro_batch=1, seq_len=1024, attn_impl='sdpa', seconds_per_micro_batch=3.72)
    out = p.judge(row, 1)
    assert out['inside'] and 1/1.15<out['predicted_seconds']/3.72<1.15


def test_ranges_are_no_wider_than_promised_and_a_gpu_without_a_row_says_so():
    assert max(SPREAD.values())<=1.35<NO_ROW and {gpu(r['gpu']).name for r in SOURCE if r['quality']!='C'}==set(SPREAD)
    assert step_time(on('T4'), gpu('T4')).spread==SPREAD['T4'] and step_time(on('T4'), replace(gpu('T4'), name='Tesla T4')).spread==SPREAD['T4']
    unseen = step_time(on('L4'), gpu('L4'))
    assert unseen.spread==1.6 and 'no published run on this GPU' in unseen.said and 'no published run' in str(plan('Llama-2-7B', gpu='L4'))


def test_the_order_of_gpus_follows_what_was_measured():
    "The data sheets have an L4 before an RTX 3090"
    took = {n: step_time(on(n), gpu(n)).seconds for n in ('T4', 'L4', 'RTX 3090', 'RTX 4090', 'A100 80GB', 'H100')}
    assert took['T4']>took['L4']>1.5*took['RTX 3090']>took['RTX 4090']>took['A100 80GB']>took['H100']
    assert 2.2<took['T4']*1e6/1024/60/17.5<2.8 # About 43 minutes for a million tokens


def test_a_short_step_costs_its_launches():
    job,fast = on('B200', length=128),gpu('B200')
    assert step_time(job, fast).limit=='launch' and 'a larger micro-batch' in cost(job, fast).said
    assert step_time(job.changed(batch=8), fast).seconds<2*step_time(job, fast).seconds
    assert step_time(on('T4', length=128), gpu('T4')).limit=='host'
    assert step_time(on('T4', batch=8, length=2048), gpu('T4')).limit!='host'


def test_full_fine_tuning_has_hours():
    p = plan('Llama-2-7B', gpu='B200')
    full,hours = p.options[0],p.cost_of(p.options[0]).hours
    assert full.job.dtype=='float32' and hours[0]<hours[1] and p.to_dict()['options'][0]['hours']==hours and short(middle(hours)) in str(p)
    assert hours[0]>4*p.cost.hours[0]
    on_t4 = replace(full.job, batch=1)
    assert step_time(on_t4, gpu('T4')).spread==NO_ROW and 'in float32 throughout' in step_time(on_t4, gpu('T4')).said
    for device in gpus():
        if device.measured and device.kind=='cuda': assert cost(full.job, device).hours, device.name
    parts = amounts(replace(full.job, accumulation=1))
    assert parts.half==0 and parts.single>0 and parts.bytes>28*p.architecture.num_parameters # AdamW in float32 reads and writes at least 28 bytes per parameter


def test_the_optimizer_is_counted_and_shared_by_the_micro_batches():
    job = make_job(find('Llama-2-7B'), 'full', 'bfloat16', optim='adamw_torch_fused', batch=1)
    n = job.arch.num_parameters
    assert amounts(job).bytes==n*(7+3+3)*2 and amounts(replace(job, accumulation=10)).bytes==n*((7+3)/10+3)*2
    assert amounts(replace(job, optim='adamw_torch')).bytes==n*(3+17+3+3)*2


def test_float32_parts_and_eager_attention_cost_time():
    from qlora_nb.simulation.job import stack
    plain,t4 = on('T4'),gpu('T4')
    upcast = replace(plain, stack=stack(upcast='all', autocast=None))
    eager = replace(plain, attention='eager', length=4096)
    assert step_time(upcast, t4).seconds>1.2*step_time(plain, t4).seconds
    assert step_time(eager, t4).seconds>1.2*step_time(replace(eager, attention='sdpa'), t4).seconds
    assert step_time(plain, t4, Code(fused=True)).seconds<step_time(plain, t4, Code()).seconds<=step_time(plain, t4).seconds


def test_an_amd_gpu_is_slower_than_its_rates():
    work = amounts(on('MI300X'))
    assert seconds(work, rates(gpu('MI300X')), rocm=True)[0]>seconds(work, rates(gpu('MI300X')))[0]


def test_prices_say_kind_date_and_age():
    l4 = gpu('L4')
    assert price_notes(l4, TODAY)[0]=='Dollars per hour: 0.39 (RunPod, on-demand, 2026-07-30) to 0.81 (AWS, hyperscaler, 2026-11-22).'
    assert age(l4.prices[0], TODAY)==119
    assert [len(price_notes(gpu('A100 80GB'), day)) for day in (TODAY, date(2027, 1, 1), date(2027, 2, 8))]==[1, 2, 2]
    assert any(n.startswith('Older than 90 days: 0.39 (RunPod') for n in cost(on('L4'), l4, today=TODAY).notes)
    edge = replace(l4, prices=(replace(l4.prices[0], date='2026-08-28'),))
    assert len(price_notes(edge, TODAY))==1 and len(price_notes(edge, date(2026, 11, 27)))==2
    assert price_notes(replace(l4, prices=(replace(l4.prices[0], date='last week'),)), TODAY)


def test_the_doubtful_source_is_gone(): assert not any('deploybase' in price.page for d in gpus() for price in d.prices)


def test_sessions_of_colab_and_kaggle():
    assert {s.name for s in SESSIONS}=={'Colab', 'Kaggle'} and all(gpu(n) for s in SESSIONS for n in s.gpus)
    assert 'ends within a 12 h session.' in session_notes(gpu('T4'), (1, 11.7))[0]
    assert 'may not end within a 12 h session. Resume it' in session_notes(gpu('T4'), (8, 11.8))[1] # With 15 minutes of start-up
    assert 'does not end within' in session_notes(gpu('P100'), (12, 20))[0] and session_notes(gpu('RTX 3090'), (1, 2))==[]
    notes = plan('Llama-2-7B', gpu='T4').notes
    assert any('Kaggle' in n for n in notes) and any(n.startswith('Start-up (boot, download, loading) takes 5 to 15 minutes more') for n in notes)
    assert any(price.provider=='Hugging Face Jobs' and price.usd==.4 for price in gpu('T4').prices)


def test_steps_of_a_run_replace_the_estimate(tmp_path):
    config = 'model: Llama-2-7B\ndata: {train: demo}\noutput: {output_dir: %s}\n' % tmp_path
    first = plan(config, gpu='T4')
    (tmp_path/'one').mkdir()
    write_about(tmp_path/'one', pace=dict(device='Tesla T4', key=pace_key(first.job), tokens=1024, seconds=5., steps=20, planned=2.5))
    then,hours = plan(config, gpu='T4'),1e6/1024*5/3600
    assert then.cost.hours==pytest.approx((hours/1.1, hours*1.1)) and 'measured: 20 steps' in str(then)
    assert next(v for v in then.gpu_verdicts if v.device.name=='T4').cost.hours==then.cost.hours
    other = plan(config+'lora: {r: 8}\n', gpu='T4')
    assert sum(other.cost.hours)==pytest.approx(2*sum(plan(config.replace(str(tmp_path), 'none')+'lora: {r: 8}\n', gpu='T4').cost.hours), rel=.05) and 'scaled by 2.00' in str(other)
    assert plan(config, gpu='L4').cost.hours==plan(config.replace(str(tmp_path), 'none'), gpu='L4').cost.hours


@pytest.mark.parametrize('pace', [3, {}, dict(device='T4'), dict(device='T4', key='x', tokens=0, seconds=1, steps=20), dict(device='T4', key='x', tokens=9, seconds='1', steps=20),
    dict(device='T4', key='x', tokens=9, seconds=1, steps=20, planned='?')], ids=str)
def test_a_pace_that_says_nothing_is_passed_over(tmp_path, pace):
    config = 'model: Llama-2-7B\ndata: {train: demo}\noutput: {output_dir: %s}\n' % tmp_path
    first = plan(config, gpu='T4').cost
    (tmp_path/'one').mkdir()
    write_about(tmp_path/'one', pace=pace)
    assert plan(config, gpu='T4').cost.hours==first.hours


def test_a_real_run_times_twenty_steps(folder, tmp_path):
    text = cell(folder, tmp_path, max_steps=22)
    before = plan(parse(text), device=detect())
    run = train(text, ROWS, name='run')
    pace,then = read_about(run.folder)['pace'],plan(parse(text), device=detect())
    assert before.cost.hours is None and run.step==22 and pace['steps']==20 and 0<pace['seconds']<run.seconds and pace['planned'] is None
    assert then.cost.hours==pytest.approx([pace['seconds']*1e6/pace['tokens']/3600*f for f in (1/1.1, 1.1)])


def test_padding_is_that_of_the_order_that_the_run_takes():
    "Held against the batches that the sampler really makes"
    import numpy as np
    from qlora_nb.tokens import batching
    lengths = np.minimum(np.random.default_rng(0).lognormal(6, .6, 5000).astype(int)+8, 1024).tolist()
    training = parse('model: demo\ndata: {train: demo}\n').training
    assert batching.WORTH==WORTH and GROUPS==50
    for batch in (2, 4, 8, 16):
        t = training.model_copy(update=dict(per_device_train_batch_size=batch, gradient_accumulation_steps=16//batch))
        def real(order): return 1/(1-batching.padding_share(np.asarray(lengths)[order] if order is not None else batching.shuffled(lengths), batch))
        alike = real(batching.grouped(lengths, 16))
        assert grouped(lengths, batch, 16//batch)==pytest.approx(alike, rel=.005) and padded(lengths, batch)==pytest.approx(real(None), rel=.01)
        assert batching.sampling(lengths, batch, 16//batch)=='group_by_length' and padding(lengths, t)==grouped(lengths, batch, 16//batch)
        assert padding(lengths, t.model_copy(update=dict(train_sampling_strategy='random')))==padded(lengths, batch)
        assert padding(lengths, t.model_copy(update=dict(packing=True)))==1==pytest.approx(padding([300]*100, t))
