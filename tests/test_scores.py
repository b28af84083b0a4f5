import pytest
from qlora_nb.results.scores import exact_match, field_score, rouge, scores

WANT = '{"a":"x","b":"y","c":1}'

def test_exact_match_ignores_only_the_ends():
    assert exact_match(' yes\n', 'yes')==1 and exact_match('y es', 'yes')==0 and exact_match('Yes', 'yes')==0

@pytest.mark.parametrize('answer,score', [
    (WANT, 1), ('{"c":1, "b":"y", "a":"x"}', 1), ('{"a":" x ","b":"y","c":1}', 1), ('{"a":"x","b":"n","c":1}', 2/3), ('{"a":"x"}', 1/3),
    ('{"a":"x","b":"y","c":1,"d":0}', 3/4), ('{"a":"x","b":"y","c":"1"}', 2/3), ('{"a":"x","b":"y","c":true}', 2/3), ('{}', 0), ('', 0), ('x', 0),
    ('[{"a":"x"}]', 0), ('"x"', 0), (WANT[:-1], 0), (f'Sure: {WANT}', 0), (f'```json\n{WANT}\n```', 0)])
def test_field_score_by_hand(answer, score): assert field_score(answer, WANT)==pytest.approx(score)

def test_field_score_needs_a_record_to_compare_with():
    with pytest.raises(ValueError, match='no JSON object'): field_score(WANT, 'some prose')

@pytest.mark.parametrize('kind,score', [('rouge1', .8), ('rouge2', .5), ('rougeL', .8)])
def test_rouge_by_hand(kind, score): assert rouge('the pump leaks oil badly', 'the old pump leaks oil', kind)==pytest.approx(score)

def test_rouge_ends(): assert rouge('same words', 'same words')==1 and rouge('one', 'two')==0 and rouge('', 'two')==0

def test_mean_over_rows():
    got = scores([WANT, '{"a":"x"}', 'no'], [WANT]*3)
    assert got['exact_match']==pytest.approx(1/3) and got['field_score']==pytest.approx(4/9)

def test_prose_has_no_field_score(): assert set(scores(['a', WANT], ['a', WANT]))=={'exact_match', 'rougeL'}

def test_rows_must_pair_up():
    with pytest.raises(ValueError): scores(['a'], ['a', 'b'])
    with pytest.raises(ValueError, match='nothing to score'): scores([], [])
