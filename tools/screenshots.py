"The README's pictures, taken in JupyterLab while the quickstart notebook trains the demo model: python tools/screenshots.py"
import shutil, signal, sys, tempfile
from pathlib import Path
import nbformat
from playwright.sync_api import sync_playwright

root = Path(__file__).parent.parent
sys.path.insert(0, str(root/'tests'))
from lab import MINUTE, Lab, Server

quickstart,images = root/'nbs'/'examples'/'quickstart.ipynb',root/'nbs'/'images'

def pictures(lab, step=30):
    "plan.png, and training.png as it is at this step; then the run is stopped"
    def picture(i, name, height=1066):
        "The cell, cut off where a long table goes on"
        lab.cell(0).locator('.jp-InputPrompt').click()
        lab.page.mouse.move(0, 0)
        lab.cell(i).evaluate('e => e.scrollIntoView()')
        box = lab.cell(i).bounding_box()
        lab.page.screenshot(path=images/f'{name}.png', clip=box | dict(height=min(box['height'], height)))

    sources = [o.source for o in nbformat.read(quickstart, 4).cells if o.cell_type=='code']
    plan,train = (next(i for i,s in enumerate(sources) if s.startswith(m)) for m in ('%qlora_plan meta-llama', '%qlora_train'))
    lab.open(quickstart.name)
    lab.page.set_viewport_size(dict(width=1280, height=1600))
    for i in range(plan+1): lab.run(i)
    picture(plan, 'plan')
    lab.start(train)
    lab.step(train, step-1, 15*MINUTE)
    picture(train, 'training')
    lab.toolbar('interrupt').click()
    lab.finished(train)

if __name__=='__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(quickstart, folder)
        server = Server(Path(folder))
        try:
            server.wait()
            with sync_playwright() as playwright:
                lab = Lab(server, playwright, shutil.which('chromium') or shutil.which('google-chrome'))
                pictures(lab)
                lab.close()
        finally: server.stop()
