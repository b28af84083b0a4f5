"Packaging facts live in settings.ini; this hands them to setuptools"
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(here/'settings.ini', encoding='utf-8')
c = ini['DEFAULT']
readme,py = here/'README.md',['3.11', '3.12', '3.13']

setup(name=c['lib_name'], version=c['version'], description=c['description'], keywords=c['keywords'].split(), license=c['license'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else c['description'], long_description_content_type='text/markdown',
    author=c['author'], author_email=c['author_email'], python_requires='>='+c['min_python'], install_requires=c['requirements'].split(),
    packages=find_packages(include=[c['lib_path'], c['lib_path']+'.*']), package_data={c['lib_path']: ['assets/*']}, zip_safe=False,
    extras_require=dict(demo=c['demo_requirements'].split(), dev=c['dev_requirements'].split(), docs=c['docs_requirements'].split()),
    classifiers=['Framework :: Jupyter', 'Topic :: Scientific/Engineering :: Artificial Intelligence',
        *(f'Programming Language :: Python :: {v}' for v in py)],
    entry_points=dict(nbdev=[f"{c['lib_path']}={c['lib_path']}._modidx:d"]))
