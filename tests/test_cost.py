"Operations, seconds, hours, dollars, as arithmetic"
import pytest
from hypothesis import given, strategies as st

from qlora_nb.config.schema import Training
from qlora_nb.planning.time import MILLION, Work, cost, fmt_dollars, fmt_hours, padded, step_time, work
from qlora_nb.errors import QLoRAError
from qlora_nb.speed.work import flops_per_token
from qlora_nb.facts.hardware import Device, gpu, gpus
from qlora_nb.facts.models import find
from qlora_nb.simulation.job import make_job

JOB = make_job(find('Llama-2-7B'))


def test_flops_by_hand():
    a = JOB.arch
    layers,head,attention,lora = 2*6_476_005_376,2*32000*4096,2*1024*4096*32,2*39_976_960
    f = flops_per_token(JOB)
    assert f.forward==layers+head+attention+lora and f.recompute==layers+attention+lora and f.backward==layers+head+2*attention+2*lora
    full = flops_per_token(JOB.changed(method='full', checkpointing=False))
    assert full.recompute==0 and full.backward==2*(layers+head)+2*attention and a.num_hidden_layers==32


@given(st.integers(1, 64), st.integers(1, 4096))
def test_time_grows_with_rows_and_length_and_never_faster_than_the_rows(batch, length):
    j,on = JOB.changed(batch=batch, length=length),gpu('A100 80GB')
    one,low,high = step_time(j, on).seconds,*step_time(j, on).range
    assert 0<low<one<high and step_time(j.changed(length=length+1), on).seconds>one
    assert one<step_time(j.changed(batch=2*batch), on).seconds<=2*one


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
    quick,slow = [h/cards for h in one.hours]
    sent = many.traffic.seconds[1]*tokens/JOB.tokens/cards/3600 if cards>1 else 0
    assert many.hours==pytest.approx((quick, slow+sent)) # Gradients of adapters hide behind an L4's computing
    assert many.dollars==pytest.approx((one.dollars[0], one.dollars[1]+sent*cards*d.usd[1]))
    assert one.dollars==pytest.approx((one.hours[0]*d.usd[0], one.hours[1]*d.usd[1]))


def test_what_is_not_known_is_left_out():
    assert cost(JOB, gpu('T4')).hours is None and 'bfloat16 on T4' in cost(JOB, gpu('T4')).said
    assert cost(JOB, Device('cpu', 'x', bf16=True)).hours is None and fmt_hours(None)==fmt_dollars(None)==''
    assert all(cost(JOB, d).dollars is None for d in gpus() if not d.prices)


@pytest.mark.parametrize('hours,said', [((1.2, 3.4), '1.2–3.4 h'), ((.1, .4), '6.0–24 min'), ((20, 31), '20–31 h'), ((.001, .002), '3.6–7.2 s')])
def test_hours_in_words(hours, said): assert fmt_hours(hours)==said


def test_dollars_in_words(): assert fmt_dollars((.5, .5))=='$0.50' and fmt_dollars((1, 250))=='$1.00–250'
