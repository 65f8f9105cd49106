"""What the doctor says about the data of a config."""

from __future__ import annotations

import pytest

from mmitpn.datasets import generate_shapes
from mmitpn.doctor import Diagnosis, command, data, main
from mmitpn.doctor.mend import ROOT

CONFIG = str(ROOT / 'configs/quickstart/dino_fast-itpn-nano_shapes.py')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def well(monkeypatch):
    """The installation is not looked at."""
    monkeypatch.setattr(command, 'CHECKS', (lambda found: found.row('python', '3.11'),))


def look(*options: str, config: str = CONFIG) -> Diagnosis:
    found = Diagnosis()
    data.check_data(found, config, options)
    return found


def test_found_with_the_number_of_images(folder):
    generate_shapes(folder / 'data/shapes', num_train=4, num_val=3)
    found = look()
    assert not found.problems
    rows = {note: (name, version) for name, version, note in found.rows}
    assert rows['data/shapes/coco/train2017'] == ('train data', 'found, 4 images')
    assert rows['data/shapes/coco/val2017'] == ('val data', 'found, 3 images')
    assert rows['data/shapes/coco/annotations/instances_val2017.json'][1].endswith(' MB')


def test_missing_generated_images(folder):
    found = look()
    assert [version for _, version, _ in found.rows] == ['missing'] * 4
    (problem,) = found.problems
    assert 'data/shapes/coco/val2017' in problem.says
    assert problem.mend.endswith('tools/data/make_shapes.py --out data/shapes')


def test_missing_data_and_a_missing_part(folder):
    generate_shapes(folder / 'mine', num_train=2, num_val=2)
    mine = 'mine/coco/'
    options = (
        f'train_dataloader.dataset.data_root={mine}',
        f'val_evaluator.ann_file={mine}annotations/instances_val2017.json',
    )
    (problem,) = look(*options, 'val_dataloader.dataset.data_root=my/coco/').problems
    assert problem.mend == 'mkdir -p my && ln -s /WHERE/YOU/HAVE/IT my/coco'
    (folder / mine / 'val2017').rename(folder / 'val')
    (problem,) = look(*options, f'val_dataloader.dataset.data_root={mine}').problems
    assert problem.mend == 'mkdir -p mine/coco && ln -s /WHERE/YOU/HAVE/IT mine/coco/val2017'


def test_what_does_not_fit_in_data_to_evaluate_only(folder):
    root = generate_shapes(folder / 'data/shapes', num_train=2, num_val=2) / 'coco'
    (root / 'train2017').rename(folder / 'elsewhere')
    (problem,) = look().problems
    assert problem.says.endswith('needs data/shapes/coco/train2017 (train data): not there')
    (root / 'annotations/instances_val2017.json').write_text('{}')
    missing, wrong = look().problems
    assert missing == problem
    assert 'instances_val2017.json is not in COCO format' in wrong.says


def test_the_test_data_are_looked_at(folder):
    generate_shapes(folder / 'data/shapes', num_train=2, num_val=2)
    found = look('test_dataloader.dataset.data_root=other/')
    assert [row for row in found.rows if row[0] == 'test data'] == [
        ('test data', 'missing', 'other/annotations/instances_val2017.json'),
        ('test data', 'missing', 'other/val2017'),
    ]
    assert all(problem.says.endswith('(test data): not there') for problem in found.problems)


def test_what_does_not_fit(folder):
    generate_shapes(folder / 'data/shapes', num_train=2, num_val=2)
    (problem,) = look('model.bbox_head.num_classes=7').problems
    assert 'num_classes' in problem.says
    assert problem.mend.endswith(f'check_coco.py {CONFIG} --cfg-options model.bbox_head.num_classes=7')


def test_the_command_ends_with_the_problems(folder, well, capsys):
    assert main(['--config', CONFIG]) == 1
    assert '1 problem(s)' in capsys.readouterr().out
    generate_shapes(folder / 'data/shapes', num_train=2, num_val=2)
    assert main(['--config', CONFIG]) == 0


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['--config', 'nowhere.py'], "no config file 'nowhere.py'"),
        (['--cfg-options', 'a=1'], 'belongs to --config'),
        (['--config', CONFIG, '--cfg-options', 'a'], 'KEY=VALUE'),
        (['--confi=x', '--nothing'], 'unrecognized arguments'),
    ],
)
def test_bad_usage_is_one_line(capsys, arguments, says):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.parametrize(('text', 'says'), [('a = (', 'bad.py'), ("_base_ = 'gone.py'", 'gone.py')])
def test_a_config_that_cannot_be_read(folder, well, capsys, text, says):
    (folder / 'bad.py').write_text(text)
    assert main(['--config', 'bad.py']) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
