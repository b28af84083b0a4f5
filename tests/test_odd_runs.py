"Runs that somebody or something interferes with: each ends in one line that says what to do, and nothing that was saved is lost"
import pytest, tiny
from trl import SFTTrainer
from qlora_nb.errors import QLoRAError
from qlora_nb.store.checkpoints import PARTS, checkpoints, latest
from qlora_nb.store.files import seal
from qlora_nb.training.start import resume, train
from qlora_nb.ui.runs import runs
from test_resume import ROWS, cell, final, stop

@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory): return final(train(cell(folder, tmp_path_factory.mktemp('whole')), ROWS, name='run'))

# ---- what a checkpoint needs

NEEDED = (*PARTS, 'adapter_model.safetensors')

@pytest.mark.parametrize('name', NEEDED)
def test_a_checkpoint_that_lacks_a_part_is_never_sealed(folder, tmp_path, monkeypatch, name):
    "The second one is not written whole: the run ends, and resumes from the first"
    save = SFTTrainer._save_checkpoint
    def leaves_out(self, model, trial):
        save(self, model, trial)
        beside = self.run.folder/'.saving'/f'checkpoint-{self.state.global_step}'
        if self.state.global_step==4: (beside/name).unlink(missing_ok=True)
    monkeypatch.setattr(SFTTrainer, '_save_checkpoint', leaves_out)
    if name=='progress.json': monkeypatch.setattr('qlora_nb.training.saving.PROGRESS', 'other.json')
    text = cell(folder, tmp_path, max_steps=6, save_steps=2)
    with pytest.raises(QLoRAError, match=r'the checkpoint of step \d could not be written: it lacks') as e: train(text, ROWS, name='run')
    assert len(str(e.value).splitlines())==1
    assert [p.name for p in checkpoints(tmp_path/'run')]==([] if name=='progress.json' else ['checkpoint-2'])

@pytest.mark.parametrize('name', NEEDED)
def test_a_sealed_checkpoint_that_lacks_a_part_is_passed_over(folder, tmp_path, whole, name):
    "As one that another program has written, or sealed anew"
    text = cell(folder, tmp_path, save_steps=3)
    run = train(text, ROWS, name='run', on_change=tiny.at_step(6, stop))
    last = run.folder/run.checkpoints[-1]
    (last/name).unlink()
    seal(last)
    assert last.name not in [p.name for p in checkpoints(run.folder)]+runs(tmp_path).records[0].checkpoints
    again = resume(str(run.folder), text, ROWS)
    assert any(f'{last.name} cannot be used: it lacks' in n for n in again.notes) and final(again)==whole

@pytest.mark.parametrize('sums', ['[]', '{}', '{"a": 3}', '{"optimizer.pt": ["x", "y"]}', '{"optimizer.pt": [null, null]}', '{"\\u0000": [1, "y"]}'])
def test_a_damaged_list_of_checksums_is_one_sentence(tmp_path, sums):
    (tmp_path/'checkpoint-1').mkdir()
    (tmp_path/'checkpoint-1'/'checksums.json').write_text(sums)
    found,passed = latest(tmp_path)
    assert found is None and len(passed)==1 and not checkpoints(tmp_path)
