"""The table of docs/recipes.md is what `RECIPES` holds."""

from pathlib import Path

from fp8sim.recipes import RECIPES, LossScaling, Recipe

PAGE = Path(__file__).resolve().parents[1] / "docs/recipes.md"


def formats(recipe: Recipe) -> str:
    names = dict.fromkeys(f"`{q.format}`" for q in (recipe.output.first, recipe.grad_input.first) if q is not None)
    return ", ".join(names) or "as they are"


def in_high_precision(recipe: Recipe) -> str:
    cast = recipe.high_precision_cast
    return ", ".join(recipe.high_precision) + ("" if cast is None else f": `{cast.format}`")


def loss_scale(scaling: LossScaling) -> str:
    if scaling == LossScaling():
        return ""
    if not scaling.is_dynamic:
        return f"{scaling.factor:g}"
    growth = f"times {scaling.growth:g} after {scaling.growth_interval} finite steps"
    return f"from {scaling.factor:.0f}, {growth}, times {scaling.backoff:g} after another"


def test_the_table_is_what_the_recipes_are() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("| `")
    ]
    said = [row[:5] for row in rows]
    expected = [
        [
            f"`{name}`",
            formats(recipe),
            f"`{recipe.parametrization}`",
            in_high_precision(recipe),
            loss_scale(recipe.loss_scaling),
        ]
        for name, recipe in RECIPES.items()
    ]
    assert said == expected
    assert all(len(row) == 6 for row in rows)
    assert all(recipe.attention is None for recipe in RECIPES.values()), "the page says that no named recipe has one"
