"The README's pictures, taken in JupyterLab while the quickstart notebook trains the demo model: python tools/screenshots.py"
import shutil, sys, tempfile
from pathlib import Path
from playwright.sync_api import sync_playwright

root = Path(__file__).parent.parent
sys.path.insert(0, str(root/'tests'))
from lab import MINUTE, Lab, Server

def pictures(lab, out, steps=50):
    "plan.png and training.png, the latter at this step; then the run is stopped"
    def picture(i, name):
        lab.cell(0).locator('.jp-InputPrompt').click()
        lab.cell(i).screenshot(path=out/f'{name}.png')

    lab.open('quickstart.ipynb')
    lab.page.set_viewport_size(dict(width=1280, height=1600))
    for i in range(4): lab.run(i)
    picture(3, 'plan')
    lab.start(5)
    lab.wait(f"/step\\s*{steps} of/.test(document.querySelectorAll('.jp-CodeCell')[5].innerText)", 30*MINUTE)
    picture(5, 'training')
    lab.toolbar('interrupt').click()
    lab.finished(5)

if __name__=='__main__':
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(root/'nbs'/'examples'/'quickstart.ipynb', folder)
        server = Server(Path(folder))
        try:
            server.wait()
            with sync_playwright() as playwright:
                lab = Lab(server, playwright, shutil.which('chromium') or shutil.which('google-chrome'))
                pictures(lab, root/'nbs'/'images')
                lab.close()
        finally: server.stop()
