"""Write the cards of the official model zoo from `model_cards/released.json` and its template.

python scripts/make_model_cards.py
"""

from hf_timesformer.hub.model_card import cards_folder, released_cards


def main() -> None:
    for name, card in released_cards().items():
        path = cards_folder() / f"{name}.md"
        path.write_text(f"{card}\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
