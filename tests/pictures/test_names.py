"""Words and repeats in the names of folders."""

import unicodedata

import pytest

from dash_vision.pictures.names import FolderName, folder_name


@pytest.mark.parametrize(
    ("name", "words", "repeats"),
    [
        ("cat", "cat", None),
        ("my_dogs-2", "my dogs", None),
        ("Red Vase", "red vase", None),
        ("10_sks dog", "sks dog", 10),
        ("1_ohwx man", "ohwx man", 1),
        ("20_zwx", "zwx", 20),
        ("5_red-haired_ohwx woman", "red haired ohwx woman", 5),
        ("20240131_cat", "cat", None),
        ("0_cat", "cat", None),
        ("10_", "", None),
        ("2024", "", None),
        ("r2d2", "r2d2", None),
        ("3_r2d2 robot", "r2d2 robot", 3),
        ("cat2", "cat2", None),
        ("grandma's dog", "grandma's dog", None),
        ("'cat'", "cat", None),
        ("Café", "café", None),
        (unicodedata.normalize("NFD", "Café Noël"), "café noël", None),
        ("猫", "猫", None),
        ("हिन्दी_कुत्ता", "हिन्दी कुत्ता", None),
        ("می\u200cخواهم", "می\u200cخواهم", None),  # noqa: RUF001
        ("เด็ก_แมว", "เด็ก แมว", None),
    ],
)
def test_names_are_words_with_kohyas_repeats_in_front(name, words, repeats):
    assert folder_name(name) == FolderName(words, repeats)
