"""List the recipes that `timesformer train --recipe NAME` knows.

    timesformer recipes
    timesformer recipes k400-8x32-224

With a name or a file: all values that this recipe sets, those of its bases included.
"""

import json

from ..training.recipes import find_recipe, list_recipes, read_recipe
from .common import make_parser, user_errors


def main(argv: list[str] | None = None) -> None:
    """Print every recipe with its description, or the values of one."""
    parser = make_parser("recipes", __doc__)
    parser.add_argument("recipe", nargs="?", help="name or file of one recipe, to see its values")
    args = parser.parse_args(argv)
    with user_errors():
        if args.recipe:
            print(json.dumps(read_recipe(find_recipe(args.recipe)), indent=2))
            return
        recipes = list_recipes()
    width = max(map(len, recipes))
    for name, description in recipes.items():
        print(f"{name:<{width}}  {description}")


if __name__ == "__main__":
    main()
