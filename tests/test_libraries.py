"What a version does is known from a table; the library's own source only contradicts it in words"
import subprocess, sys
from pathlib import Path
import pytest
from qlora_nb.errors import QLoRAError
from qlora_nb.facts import libraries
from qlora_nb.facts.libraries import BEHAVIOURS, holds, installed, known

@pytest.fixture(autouse=True)
def fresh():
    known.cache_clear()
    yield
    known.cache_clear()

# Read off the released wheels: the last version before a change and the first after it
RELEASES = [('fused_head', '1.14.2', False), ('fused_head', '1.15.0', True), ('upcast', '0.21.0', True), ('upcast', '0.25.1', True), ('upcast', '0.26.0', False),
    ('bfloat16_adapters', '0.25.1', False), ('bfloat16_adapters', '0.26.0', True), ('reentrant', '4.57.6', True), ('reentrant', '5.0.0', False), ('reentrant', '5.15.0', False)]

@pytest.mark.parametrize('name,version,does', RELEASES)
def test_the_table_says_what_the_releases_do(name, version, does): assert holds(name, version) is does

@pytest.mark.parametrize('version,does', [('1.9.2', False), ('1.15', True), ('1.15.0.dev0', True), ('1.15.0rc1', True), ('1.15.0+cu128', True), ('2', True), ('1.14.99', False)])
def test_versions_compare_as_numbers(version, does): assert holds('fused_head', version) is does

def test_an_unknown_name_gets_a_suggestion():
    for ask in (lambda: holds('fused_haed', '1.16'), lambda: known('fused_haed')):
        with pytest.raises(QLoRAError, match="Did you mean 'fused_head'"): ask()

@pytest.mark.parametrize('name', BEHAVIOURS)
def test_what_is_installed_agrees_with_its_source(name):
    found = known(name)
    assert not found.note and installed(BEHAVIOURS[name].package) in found.why

@pytest.mark.parametrize('version,note', [('1.14.2', 'but its trainer/utils.py has `def add_fused_lm_head`'), ('1.15.1', '')])
def test_a_source_that_disagrees_is_noted_and_changes_nothing(version, note, monkeypatch):
    monkeypatch.setattr(libraries, 'installed', lambda package: version)
    monkeypatch.setattr(libraries, '_text', lambda package, file: 'def add_fused_lm_head(model): pass')
    found = known('fused_head')
    assert bool(found)==holds('fused_head', version) and note in found.note and bool(found.note)==bool(note)

def test_where_a_package_is_not_installed_the_plan_is_made_for_the_oldest_release_that_may_be(monkeypatch):
    monkeypatch.setattr(libraries, 'installed', lambda package: '')
    assert known('fused_head') and not known('reentrant') and not known('upcast').note
    assert known('upcast').why=='planned for TRL 1.16, which casts nothing to float32 after loading'
    needs = (Path(__file__).parent.parent/'settings.ini').read_text()
    for package,planned in libraries.PLANNED.items(): assert f'{package}>={planned.split()[1]},' in needs

def test_a_source_that_cannot_be_found_says_nothing(monkeypatch):
    monkeypatch.setattr(libraries, '_text', lambda package, file: '')
    assert not known('fused_head').note

def test_nothing_is_imported():
    code = "import sys; from qlora_nb.facts.libraries import BEHAVIOURS, known; [known(n) for n in BEHAVIOURS]; print([m for m in ('trl', 'transformers', 'torch', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()=='[]'
