"The lessons are saved without the answers that `reveal` gives, and its cells are folded, so that a reader can still guess: python tools/answers.py"
import nbformat, re
from course import lessons

ANSWER = re.compile(r'^(?:You said [^\n]*? )?It is [^\n]*$', re.M)
CLAIM = re.compile(r'^(?!✓ .*: …$)(✓ .*: )[^\n]*$', re.M) # Beside it, the same figure is asserted
INSTEAD = 'Run this cell to see the answer.'
FOLDED = dict(jupyter=dict(source_hidden=True), cellView='form') # The code of a cell in JupyterLab, and in Colab

def hidden(nb)->bool:
    "Replace the answers in the outputs of a notebook, and fold the cells whose code states them; whether there were any"
    found = False
    for cell in (o for o in nb.cells if 'reveal(' in o.source):
        found |= any(cell.metadata.get(key)!=value for key,value in FOLDED.items())
        cell.metadata.update(FOLDED)
    for cell in nb.cells:
        for output in cell.get('outputs', ()) if 'reveal(' in cell.source else ():
            if output.output_type!='stream': continue
            text = CLAIM.sub(r'\1…', ANSWER.sub(INSTEAD, output.text))
            found |= text!=output.text
            output.text = text
    return found

def main():
    for path in lessons():
        nb = nbformat.read(path, 4)
        if hidden(nb): nbformat.write(nb, path)

if __name__=='__main__': main()
