"The data report as a person sees it: rows that fold open and rows to step through, by keyboard, in both themes, and after the notebook was saved"
import nbformat, pytest, tiny
from playwright.sync_api import expect
from test_browser import CONTRAST, lab, legible, opened, prepared, window

pytestmark = [pytest.mark.slow, pytest.mark.browser]
USED = (CONTRAST, lab, prepared, window) # fixtures, and what `legible` needs

def test_the_report_by_keyboard(lab, prepared):
    long = "rows += [dict(prompt='who is there', completion='nobody at all, '*9), dict(prompt='and now', completion='')]"
    opened(lab, 'report.ipynb', *prepared[:2], long, prepared[2], '%qlora_data --browse')
    for i in range(5): lab.run(i)
    expect(lab.output(3).first).to_contain_text('rows: prompt_completion, instruction')
    report,stepper = lab.output(4).locator('.qnb').first,lab.cell(4).locator('.widget-vbox')
    for words in ('underlined tokens are in the loss', 'cut at max_length 64', 'rows, row 17', 'without an answer to train on', 'suggested max_length', 'grouped by length'): expect(report).to_contain_text(words)
    expect(report.locator('svg').first).to_be_visible()
    assert report.locator('u').first.inner_text().strip()=='the cat </s>'
    fold = report.locator('details').nth(1)
    fold.locator('summary').press('Enter')
    expect(fold).to_have_attribute('open', '')
    expect(stepper).to_contain_text('row 1 · rows, row 1')
    stepper.locator('button').nth(1).focus()
    for n in (2, 3):
        lab.page.keyboard.press(' ')
        expect(stepper).to_contain_text(f'row {n} · rows, row {n},')
    lab.page.keyboard.press('Tab')
    expect(stepper.locator('input')).to_be_focused()
    lab.page.keyboard.press('ArrowDown')
    lab.page.keyboard.press('Enter')
    expect(stepper).to_contain_text('row 2 · rows, row 2,')
    legible(lab)
    lab.page.keyboard.press('Tab')
    stepper.locator('button').nth(2).focus()
    lab.page.keyboard.press('Enter')
    expect(lab.cell(4).locator('.widget-vbox')).to_have_count(0)
    expect(lab.output(4).last).to_contain_text('row 2 · rows, row 2,')
    lab.save()
    nb = nbformat.read(lab.server.root/'report.ipynb', 4)
    assert not [d for c in nb.cells for o in c.outputs for d in o.get('data', ()) if 'widget' in d]
    assert tiny.rows()[1]['completion'] in str(nb.cells[4].outputs[-1])
