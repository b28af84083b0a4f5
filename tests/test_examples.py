"The example notebooks run from start to end, with a few steps; what a full run reaches, they assert themselves"
import nbformat, pytest
from conftest import root, short
from nbclient import NotebookClient

@pytest.mark.slow
@pytest.mark.parametrize('name', ['custom_dataset', 'dialogues'])
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    nb = short(nbformat.read(root/'nbs'/'examples'/f'{name}.ipynb', 4))
    NotebookClient(nb, timeout=600, kernel_name='python3', resources=dict(metadata=dict(path=str(tmp_path)))).execute()
    said = '\n'.join(o.get('text') or o.get('data', {}).get('text/plain', '') for c in nb.cells if c.cell_type=='code' for o in c.outputs)
    assert 'finished' in said and 'adapter_model.safetensors' in {p.name for p in tmp_path.rglob('*.safetensors')}
    assert not list((root/'nbs'/'examples').glob('*.csv'))
