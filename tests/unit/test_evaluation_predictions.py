"""Reading predictions: every form that is taken, and every mistake named by file, line and column."""

import numpy as np
import pytest

from inference.evaluation.errors import EvaluationError, UnusablePredictions
from inference.evaluation.predictions import read_predictions
from inference.evaluation.tables import ColumnNames

PUBLISHED = """in dataset_s2, load npy data in NpyData-clip-size224x336
NCOV-BF/ImageSets/ncov_valid.txt
NCOV-BF/clip/ncov-1.npy ncov-1 4.712202184009584e-08 1.0 1
NCOV-BF/clip/ncov-2.npy ncov-2 0.25 0.75 1
NCOV-BF/clip/normal-1.npy normal-1 0.9 0.1 0
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="predictions.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write


def problems(path, **options):
    with pytest.raises(UnusablePredictions) as caught:
        read_predictions(path, **options)
    return [(problem.line, problem.column, problem.reason) for problem in caught.value.problems]


def test_the_published_form_is_read_with_its_log_lines_passed_over(write):
    predictions = read_predictions(write(PUBLISHED, "published.txt"))
    assert predictions.probability.tolist() == [1.0, 0.75, 0.1]
    assert predictions.label.tolist() == [True, True, False]
    assert predictions.case == ("ncov-1", "ncov-2", "normal-1")
    assert predictions.notes == ("2 lines of text before the first case were passed over",)


@pytest.mark.parametrize(
    "text",
    [
        "case,probability,label\na,0.25,1\nb,0.75,0\n",
        "\ncase,probability,label\r\n\r\na,0.25,1\r\nb,0.75,0",
        "Case ID;P_COVID;Label\na;0,25;positive\nb;0,75;negative\n",
        "label\tscore\tcase\n1.0\t0.25\ta\n0.0\t0.75\tb\n",
        '"case","probability","label"\n"a","2.5e-1","COVID"\n"b","0.75","Normal"\n',
        "\ufeffcase,y_true,prob\na,true,0.25\nb,false,0.75\n",
    ],
    ids=["plain", "windows and blank lines", "semicolon and decimal comma", "tabs", "quoted", "byte order mark"],
)
def test_a_csv_is_read_whatever_program_wrote_it(write, text):
    predictions = read_predictions(write(text))
    assert predictions.probability.tolist() == [0.25, 0.75]
    assert predictions.label.tolist() == [True, False]
    assert predictions.case == ("a", "b")


def test_unicode_text_of_a_spreadsheet_is_read(write):
    predictions = read_predictions(write("case\tprobability\tlabel\n病例\t0.25\t1\n", encoding="utf-16"))
    assert predictions.case == ("病例",)


def test_other_columns_come_along_by_a_plain_name(write):
    text = "case,probability,label,Slice Thickness (mm),Sex\na,0.2,0,1.5,F\nb,0.9,1,,M\n"
    predictions = read_predictions(write(text))
    assert predictions.columns == {"slice_thickness_mm": ("1.5", ""), "sex": ("F", "M")}


def test_columns_of_any_name_can_be_named(write):
    path = write("which,how much,really\na,0.2,0\n")
    names = ColumnNames(case="which", probability="How much", label="really")
    assert read_predictions(path, names=names).case == ("a",)


@pytest.mark.parametrize(
    ("line", "column", "reason"),
    [
        ("c,,1", "probability", "is empty"),
        ("c,nan,1", "probability", "is NaN, not a probability"),
        ("c,inf,1", "probability", "inf is not a probability between 0 and 1"),
        ("c,91.3,1", "probability", "91.3 is not a probability between 0 and 1"),
        ("c,-0.1,1", "probability", "-0.1 is not a probability between 0 and 1"),
        ("c,high,1", "probability", "is not a number"),
        ("c,1_0,1", "probability", "is not a number"),
        ("c,0.5,", "label", "the label is missing"),
        ("c,0.5,2", "label", "is not a label; use 1 and 0, or positive and negative"),
        (",0.5,1", "case", "is empty"),
        ("c,0.5", "label", "the line has 2 columns, the header 3"),
        ("c,0,5,1", "label", "the line has 4 columns, the header 3"),
        ("a,0.1,0", "case", "the same case as in line 2"),
        ("a,0.2,0", "case", "the same case as in line 2 with another value"),
    ],
)
def test_a_mistake_is_named_by_line_and_column(write, line, column, reason):
    path = write(f"case,probability,label\na,0.1,0\n\nb,0.9,1\n{line}\n")
    assert problems(path) == [(5, column, reason)]


def test_the_message_has_the_file_and_stops_after_ten(write):
    path = write("case,probability,label\n" + "".join(f"c{n},x,1\n" for n in range(40)))
    with pytest.raises(UnusablePredictions) as caught:
        read_predictions(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "predictions.csv, line 2, column probability: is not a number"
    assert lines[10:] == ["... and 30 more"]


def test_no_text_of_a_bad_line_reaches_the_message(write):
    path = write("case,probability,label\nDOE^JANE,DOE^JANE,DOE^JANE\nDOE^JANE,0.1,DOE^JANE\nDOE^JANE\n")
    with pytest.raises(UnusablePredictions) as caught:
        read_predictions(path)
    assert "DOE" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ("file c 0.3 0.7", "label"),
        ("file c 0.3 0.3 1", "P(COVID)"),
        ("file c 0.3 nan 1", "P(COVID)"),
        ("file c nan 0.7 1", "P(normal)"),
        ("file c 0.3 0.7 ncov2", "label"),
        ("file ncov-1 0.25 0.75 1", "case"),
    ],
)
def test_a_mistake_in_the_published_form_is_named_too(write, line, column):
    assert [problem[:2] for problem in problems(write(PUBLISHED + line + "\n", "published.txt"))] == [(6, column)]


def test_a_missing_column_is_named_and_what_it_may_be_called(write):
    found = problems(write("case,value,label\na,0.1,0\n"))
    assert [(line, column) for line, column, _ in found] == [(1, "probability")]
    assert "p_covid" in found[0][2]
    assert problems(write("case,p,label\na,0.1,0\n"), names=ColumnNames(label="really"))[0][:2] == (1, "really")


def test_bytes_that_are_no_text_are_named_by_line(write):
    path = write("case,probability,label\na,0.1,0\nмёд,0.9,1\n", encoding="koi8-r")
    assert problems(path) == [(3, "1", "is not UTF-8 text; save the file as UTF-8")]


@pytest.mark.parametrize("text", ["", "\n \n", "case,probability,label\n", "case,probability,label\n\n,,\n"])
def test_a_file_without_cases_is_refused(write, text):
    with pytest.raises(EvaluationError, match=r"predictions\.csv (is empty|holds no usable case)"):
        read_predictions(write(text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="cannot read"):
        read_predictions(tmp_path / "absent.csv")


def test_unusable_lines_are_left_out_and_listed_when_asked_for(write):
    path = write("case,probability,label\na,0.1,0\nb,nan,1\nc,0.9,1\nc,0.9,1\nd,0.5,\n")
    predictions = read_predictions(path, skip_unusable=True)
    assert predictions.case == ("a", "c")
    assert [(problem.line, problem.column) for problem in predictions.left_out] == [
        (3, "probability"),
        (6, "label"),
        (5, "case"),
    ]


def test_two_different_answers_for_one_case_are_refused_even_then(write):
    path = write("case,probability,label\na,0.1,0\na,0.9,0\n")
    assert problems(path, skip_unusable=True) == [(3, "case", "the same case as in line 2 with another value")]


def test_labels_from_a_file_of_their_own_find_their_cases(write):
    # The predictions' own labels, were there any, give way.
    path = write("case,probability,label\na,0.1,1\nb,0.9,1\n")
    labels = write("case,label,sex\nb,1,F\na,0,M\nz,0,M\n", "labels.csv")
    predictions = read_predictions(path, labels=labels)
    assert predictions.label.tolist() == [False, True]
    assert predictions.columns == {"sex": ("M", "F")}
    assert predictions.notes == ("1 labelled cases have no prediction and are not in the figures",)


def test_mistakes_in_the_labels_are_named_in_the_file_where_they_stand(write):
    path = write("case,probability\na,0.1\nb,0.9\nc,0.3\n")
    labels = write("case,label\na,0\nb,\na,0\n", "labels.csv")
    with pytest.raises(UnusablePredictions) as caught:
        read_predictions(path, labels=labels)
    assert str(caught.value).splitlines() == [
        "labels.csv, line 3, column label: the label is missing",
        "labels.csv, line 4, column case: the same case as in line 2",
        "predictions.csv, line 4, column case: has no label in labels.csv",
    ]


def test_contradicting_labels_are_refused(write):
    path = write("case,probability\na,0.1\n")
    labels = write("case,label\na,0\na,1\n", "labels.csv")
    assert problems(path, labels=labels, skip_unusable=True)[0][:2] == (3, "case")


def test_a_file_without_cases_column_is_read_but_cannot_be_joined(write):
    path = write("probability,label\n0.1,0\n0.1,0\n")
    assert np.array_equal(read_predictions(path).probability, [0.1, 0.1])
    assert problems(path, labels=write("case,label\na,1\n", "labels.csv"))[0][:2] == (1, "case")
