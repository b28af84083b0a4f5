"Facts about GPUs and dtypes"
import json, re
from importlib.resources import files

import pytest
from conftest import root

from qlora_nb.facts import hardware
from qlora_nb.errors import QLoRAError
from qlora_nb.facts.hardware import Device, gpu, gpus, precision
from qlora_nb.render import GiB


ENTRIES = json.loads((files('qlora_nb')/'assets'/'gpus.json').read_text(encoding='utf-8'))['gpus']
ASKED = ('T4', 'P100', 'V100 16GB', 'RTX 3060', 'RTX 3090', 'RTX 4060 Ti', 'RTX 4080', 'RTX 4090', 'RTX 5090', 'A10G', 'L4', 'L40S', 'A40', 'A5000', 'A6000',
    'A100 40GB', 'A100 80GB', 'H100', 'H200', 'B200', 'MI300X')


KINDS = ('community', 'secure', 'spot', 'hyperscaler', 'subscription', 'on-demand')

def test_every_gpu_has_a_source_and_a_date():
    for g in ENTRIES:
        assert g['date'] and g['source'] and g['spec'] and (g['tflops'] is None or 'http' in g['spec'] or 'read on' in g['spec'])
        assert bool(g.get('rates'))==bool(g.get('measured_tflops')) and ('http' in g.get('rates', 'http') or 'read on' in g['rates'])
        for p in g['prices']: assert p['page'].startswith(('https://', 'read on')) and '2026-01-01'<p['date']<=g['date'] and 0<p['usd']<30 and p['kind'] in KINDS
    for d in gpus(): assert gpu(d.name)==d and (d.memory is None or 5*GiB<d.memory<300*GiB)
    for d in gpus():
        if d.kind=='cuda': assert d.bf16==(d.capability>=(8, 0))


def test_every_gpu_that_people_rent_is_complete():
    for n in ASKED:
        d = gpu(n)
        assert d.memory and d.bandwidth and d.tflops
    assert [d.name for d in map(gpu, ASKED) if not d.prices]==['P100', 'RTX 4060 Ti 16GB']
    assert all(gpu(g['name']).tflops is None for g in ENTRIES if g['kind']=='mps')


def test_no_sparse_figure(): assert gpu('H100').tflops==989 and gpu('A100 80GB').tflops==312 and gpu('RTX 4090').tflops==165.2 and gpu('B200').tflops==2250


def own(tmp_path, monkeypatch, text):
    f = tmp_path/'gpus.json'
    f.write_text(text if isinstance(text, str) else json.dumps(text))
    monkeypatch.setenv(hardware.OWN, str(f))


def test_own_gpus_win_and_are_read_again_when_they_change(tmp_path, monkeypatch):
    own(tmp_path, monkeypatch, dict(gpus=[dict(name='t4', usable_gib=14, also=['Colab'])]))
    assert gpu('T4').memory==14*GiB and gpu('colab').tflops==65 and hardware.OWN not in gpu('colab').source
    own(tmp_path, monkeypatch, dict(gpus=[dict(name='Lab', usable_gib=40, capability=[9, 0], date='2026-11-22')]))
    assert gpu('lab').bf16 and gpu('lab').tflops is None and gpu('lab').source=='QLORA_NB_GPUS (2026-11-22)' and gpu('T4').memory>14*GiB
    assert len(hardware.catalogue().rows())==len(ENTRIES)+1 and 'Lab' in str(hardware.catalogue())


@pytest.mark.parametrize('text,say', [('[', 'not JSON'), ('[]', 'a list under'), (dict(gpus=[dict(usable_gib=4)]), 'needs a `name`'),
    (dict(gpus=[dict(name='x', price=1)]), "Did you mean 'prices'"), (dict(gpus=[dict(name='x', tflops='9')]), 'positive number'),
    (dict(gpus=[dict(name='x', usable_gib=True)]), 'positive number'), (dict(gpus=[dict(name='x', prices=[dict(usd=1)])]), 'has `usd`')])
def test_a_bad_file_is_refused_in_one_line(tmp_path, monkeypatch, text, say):
    own(tmp_path, monkeypatch, text)
    with pytest.raises(QLoRAError, match=say) as e: gpus()
    assert '\n' not in str(e.value)
    monkeypatch.setenv(hardware.OWN, str(tmp_path/'none'))
    with pytest.raises(QLoRAError, match='cannot be read'): gpus()


def test_usable_memory_is_below_the_label():
    labels = {'T4': 16, 'A100 40GB': 40, 'A100 80GB': 80, 'L4': 24, 'A10G': 24, 'RTX 4080': 16, 'RTX 4090': 24, 'RTX 5090': 32}
    assert all(gpu(n).memory<gib*GiB for n,gib in labels.items())


@pytest.mark.parametrize('name,want', [('t4', 'T4'), ('NVIDIA GeForce RTX 4090', 'RTX 4090'), ('NVIDIA A100 80GB PCIe', 'A100 80GB'),
    ('Tesla V100-SXM2-16GB', 'V100 16GB'), ('NVIDIA H100 80GB HBM3', 'H100 80GB')])
def test_gpus_by_the_names_of_drivers(name, want): assert gpu(name).name==want


@pytest.mark.parametrize('name,near', [('RTX 4091', 'RTX 4090'), ('V100', 'V100 16GB'), ('A100', 'A100 40GB'), ('MI300', 'MI300X'), ('T5', 'T4')])
def test_an_unknown_gpu_gets_its_neighbour(name, near):
    with pytest.raises(QLoRAError, match=f'Did you mean {near!r}') as e: gpu(name)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', ['RTX 2060', 'RTX 4080 SUPER', 'RTX 5090 Laptop', 'H800', 'A30'])
def test_no_other_model_is_suggested(name):
    "Near in spelling, far in speed"
    with pytest.raises(QLoRAError) as e: gpu(name)
    assert 'Did you mean' not in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('name,family', [('TPU v5e-8', 'Google TPU'), ('Gaudi 3', 'Intel Gaudi'), ('Intel Arc A770', 'Intel Arc'), ('trn1.32xlarge', 'AWS Trainium')])
def test_what_is_not_supported_is_named(name, family):
    with pytest.raises(QLoRAError, match=f'^{family} is not supported: runs need an NVIDIA or AMD GPU, or a CPU') as e: gpu(name)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('name,want,count', [('2xT4', 'T4', 2), ('Kaggle T4 ×2', 'T4', 2), ('8 x H100', 'H100 80GB', 8), ('H100 PCIe', 'H100 PCIe', 1), ('A10', 'A10', 1),
    ('RTX 5080', 'RTX 5080', 1), ('RTX PRO 6000', 'RTX PRO 6000 Blackwell', 1), ('NVIDIA GeForce RTX 5070 Ti', 'RTX 5070 Ti', 1), ('B300', 'B300', 1)])
def test_names_that_people_use(name, want, count): assert (gpu(name).name, gpu(name).count)==(want, count)


def test_rates_are_those_that_were_measured():
    assert (gpu('T4').measured, gpu('T4').float32)==(24, 4.3) and gpu('L40S').measured==248 and gpu('H100 PCIe').measured==477 and gpu('P100').measured==8.4
    reached = sorted(d.measured/d.tflops for d in gpus() if d.kind=='cuda' and d.measured and d.tflops and not re.match('(RTX|GTX) \\d{4}', d.name))
    assert abs(reached[len(reached)//2]-hardware.REACHED)<.03
    geforce = sorted(d.float32/d.measured for d in gpus() if d.float32 and re.match('RTX \\d{4}', d.name))
    assert abs(geforce[len(geforce)//2]-hardware.GEFORCE)<.03
    for size,name in (((8, 0), 'A100 80GB'), ((9, 0), 'H100'), ((10, 0), 'B200')): assert abs(gpu(name).float32/gpu(name).measured-hardware.SINGLE[size])<.002


def test_a_gpu_named_by_the_driver_has_the_rates_of_the_catalogue():
    seen = hardware.rates(Device('cuda', 'Tesla T4', capability=(7, 5)))
    assert seen==hardware.rates(gpu('T4')) and hardware.rates(Device('cuda', 'Some card')) is None


def test_an_old_price_without_a_kind_is_accepted(tmp_path, monkeypatch):
    own(tmp_path, monkeypatch, dict(gpus=[dict(name='T4', measured_tflops=30, prices=[dict(usd=1, provider='mine', page='bill', date='2026-11-22')])]))
    assert gpu('T4').usd==(1, 1) and gpu('T4').measured==30 and gpu('T4').prices[0].kind==''


CPU,CPU16 = Device('cpu', 'old'),Device('cpu', 'new', bf16=True)
@pytest.mark.parametrize('device,asked,compute,say', [(CPU, 'auto', 'float32', 'neither'), (CPU16, 'auto', 'bfloat16', 'natively'), (CPU16, 'float32', 'float32', 'as asked'),
    (CPU, 'bfloat16', 'bfloat16', 'emulated'), (CPU16, 'float16', 'float16', 'loss scaling'), (gpu('T4'), 'auto', 'float16', 'emulates'),
    (gpu('T4'), 'bfloat16', 'bfloat16', 'emulated'), (gpu('V100 32GB'), 'auto', 'float16', 'emulates'), (gpu('A100 40GB'), 'auto', 'bfloat16', 'natively'),
    (gpu('L4'), 'float16', 'float16', 'cannot overflow'), (Device('mps', 'Apple GPU'), 'auto', 'float32', 'Apple')])
def test_precision(device, asked, compute, say):
    p = precision(device, asked)
    assert p.compute==compute and p.adapters=='float32' and say in p.why


def test_precision_refuses_other_words():
    with pytest.raises(QLoRAError, match="Did you mean 'float16'"): precision(CPU, 'float6')


def test_prose_counts_the_catalogue_as_it_is():
    "Any two-digit number of GPUs in a text is that of the GPUs that a plan judges"
    texts = [root/'README.md', root/'CHANGELOG.md', *(root/'nbs').rglob('*.ipynb')]
    said = {(f.name, int(n)) for f in texts for n in re.findall(r'\b(\d\d) (?:GPUs|cards)\b', f.read_text(encoding='utf-8'))}
    planned = sum(d.memory is not None for d in gpus())
    assert {n for _,n in said}<={planned} and ('README.md', planned) in said
