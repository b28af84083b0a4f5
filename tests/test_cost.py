"Operations, seconds, hours, dollars: against the published runs, and as arithmetic"
import json

import pytest
from conftest import root
from hypothesis import given, strategies as st

from qlora_nb.config.schema import Training
from qlora_nb.planning.time import EFFICIENCY, MILLION, Work, cost, flops_per_token, fmt_dollars, fmt_hours, padded, step_seconds, work
from qlora_nb.errors import QLoRAError
from qlora_nb.facts.hardware import Device, gpu, gpus
from qlora_nb.facts.models import find, from_config
from qlora_nb.simulation.job import make_job

JOB = make_job(find('Llama-2-7B'))
ROWS = [r for r in json.loads((root/'benchmarks/data/measured_memory.json').read_text()) if (r.get('also') or {}).get('tokens_per_s')]


def published(row):
    c = row['model_config']|dict(model_type='llama' if row['model_config']['model_type']=='granite' else row['model_config']['model_type'])
    full = row['method']=='full'
    own = {} if full else dict(r=row['lora_r'] or 16, target_modules=tuple(row['target_modules'] or ('q_proj',)))
    stored = 'nf4' if row['method']=='qlora' else 'bfloat16'
    return make_job(from_config(c, row['model']), 'full' if full else 'lora', stored, **own, batch=row['micro_batch'], length=row['seq_len'])


def efficiency(row):
    "The share of the A100's peak that explains a row's tokens per second"
    j,taken = published(row),row['micro_batch']*row['seq_len']/float(row['also']['tokens_per_s'])
    at_peak,_ = step_seconds(j, gpu('A100 80GB'), (1, 1))
    matrix = flops_per_token(j).total*j.tokens/(gpu('A100 80GB').tflops*1e12)
    return matrix/(taken-(at_peak-matrix))


def test_efficiency_is_the_range_of_one_source():
    assert len(ROWS)==8 and all('fms-acceleration' in r['source'] for r in ROWS)
    seen = [efficiency(r) for r in ROWS if r['method']=='qlora']
    assert len(seen)==4 and (round(min(seen), 3), round(max(seen), 3))==EFFICIENCY


def test_rows_that_were_not_used_lie_near():
    for r in ROWS: assert EFFICIENCY[0]<efficiency(r)<1.15*EFFICIENCY[1]


def test_flops_by_hand():
    a = JOB.arch
    layers,head,attention,lora = 2*6_476_005_376,2*32000*4096,2*1024*4096*32,2*39_976_960
    f = flops_per_token(JOB)
    assert f.forward==layers+head+attention+lora and f.recompute==layers+attention+lora and f.backward==layers+head+2*attention+2*lora
    full = flops_per_token(JOB.changed(method='full', checkpointing=False))
    assert full.recompute==0 and full.backward==2*(layers+head)+2*attention and a.num_hidden_layers==32


@given(st.integers(1, 64), st.integers(1, 4096))
def test_time_is_linear_in_rows_and_grows_with_length(batch, length):
    j = JOB.changed(batch=batch, length=length)
    low,high = step_seconds(j, gpu('A100 80GB'))
    assert 0<low<high and step_seconds(j.changed(length=length+1), gpu('A100 80GB'))[0]>low
    assert step_seconds(j.changed(batch=2*batch), gpu('A100 80GB'))[1]<=2*high+1e-12


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=50), st.integers(1, 32))
def test_padding(lengths, batch):
    p = padded(lengths, batch)
    assert 1-1e-9<=p<=max(lengths)*len(lengths)/sum(lengths)+1e-9 and padded(lengths, 1)==pytest.approx(1) and padded(lengths, batch+1)>=p-1e-9


def test_padding_is_what_random_batches_need():
    from itertools import product
    lengths = [3, 5, 11]
    exact = sum(max(b) for b in product(lengths, repeat=2))/9
    assert padded(lengths, 2)==pytest.approx(exact/(sum(lengths)/3))


def test_work():
    assert work() is MILLION and work(1000, Training(num_train_epochs=2)).tokens==2000
    w = work([10, 20, 3000], Training(max_length=100, num_train_epochs=3))
    assert w.tokens==390 and (w.rows, w.longest)==(3, 3000)
    assert work([10]*8, Training(max_length=100, max_steps=5, per_device_train_batch_size=2, gradient_accumulation_steps=4)).tokens==400
    for bad in (0, [], [0, 3]):
        with pytest.raises(QLoRAError, match='tokens: '): work(bad, Training())


@given(st.integers(1, 10**9), st.integers(1, 8))
def test_cost_is_linear(tokens, cards):
    d = gpu('L4')
    one,many = cost(JOB, d, Work(tokens, '')),cost(JOB, d, Work(tokens, ''), cards)
    assert many.hours==pytest.approx([h/cards for h in one.hours]) and many.dollars==pytest.approx(one.dollars)
    assert one.dollars==pytest.approx((one.hours[0]*d.usd[0], one.hours[1]*d.usd[1]))


def test_what_is_not_known_is_left_out():
    assert cost(JOB, gpu('T4')).hours is None and 'bfloat16 on T4' in cost(JOB, gpu('T4')).said
    assert cost(JOB, Device('cpu', 'x', bf16=True)).hours is None and fmt_hours(None)==fmt_dollars(None)==''
    assert all(cost(JOB, d).dollars is None for d in gpus() if not d.prices)


@pytest.mark.parametrize('hours,said', [((1.2, 3.4), '1.2–3.4 h'), ((.1, .4), '6.0–24 min'), ((20, 31), '20–31 h'), ((.001, .002), '3.6–7.2 s')])
def test_hours_in_words(hours, said): assert fmt_hours(hours)==said


def test_dollars_in_words(): assert fmt_dollars((.5, .5))=='$0.50' and fmt_dollars((1, 250))=='$1.00–250'
