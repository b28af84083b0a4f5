"The lessons are saved without the answers that `reveal` gives, so that a reader on GitHub or on the site can still guess: python tools/answers.py"
import nbformat, re
from course import lessons

ANSWER = re.compile(r'^(?:You said [^\n]*? )?It is [^\n]*$', re.M)
CLAIM = re.compile(r'^(?!✓ .*: …$)(✓ .*: )[^\n]*$', re.M) # Beside it, the same figure is asserted
INSTEAD = 'Run this cell to see the answer.'

def hidden(nb)->bool:
    "Replace the answers in the outputs of a notebook; whether there were any"
    found = False
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
