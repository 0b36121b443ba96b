"""A state of the page as a Python snippet and as a command."""

import shlex
from pathlib import Path

from atlas_jax.explorer._requests import Steering

_PYTHON = """import atlas_jax as aj

run = aj.Alignment.load({run!r})
model = run.subject.model
query = run.atlas.query({features}, {weights})
strengths = {strengths}
edits = {{s: aj.Steer(run.translation(s, {method!r}).direction(query), x) for s, x in strengths.items()}}
for i, prompt in enumerate({prompts!r}):
    ids = {ids}
    options = {{"max_new_tokens": {tokens}, "temperature": {temperature}, "seed": {seed} + i}}
    print(aj.generate(model, [ids], **options).texts[0])
    print(aj.generate(model, [ids], edits=edits, **options).texts[0])
"""
_CHAT, _PLAIN = 'model.chat([{"role": "user", "content": prompt}])', "model.tokenizer.encode([prompt])[0]"


def python(run: Path, method: str, asked: Steering) -> str:
    """Return a snippet that generates the same texts.

    Example:
      >>> from pathlib import Path
      >>> from atlas_jax.explorer._code import python
      >>> from atlas_jax.explorer._requests import Steering
      >>> asked = Steering(features=[(3, 1.0)], strengths={"resid_post.2": 0.5}, prompts=["The"])
      >>> "run.atlas.query([3], [1.0])" in python(Path("runs/quickstart"), "covariance:mean", asked)
      True
    """
    features, weights = [i for i, _ in asked.features], [w for _, w in asked.features]
    settings = {"tokens": asked.tokens, "temperature": asked.temperature, "seed": asked.seed}
    return _PYTHON.format(
        run=str(run), features=features, weights=weights, strengths=_steered(asked), method=method,
        prompts=asked.prompts, ids=_CHAT if asked.chat else _PLAIN, **settings,
    )  # fmt: skip


def command(run: Path, method: str, asked: Steering) -> str:
    """Return the command that generates the same texts, or why there is none.

    Example:
      >>> from pathlib import Path
      >>> from atlas_jax.explorer._code import command
      >>> from atlas_jax.explorer._requests import Steering
      >>> command(Path("run"), "ridge", Steering(features=[(3, 1)], strengths={"z.1": 0.1, "z.2": 0.2}))
      '# atlas-jax steer has one strength for all sites; use the snippet'
    """
    strengths = _steered(asked)
    if len(set(strengths.values())) != 1:
        several = "has one strength for all sites; use the snippet"
        return f"# atlas-jax steer {several if strengths else 'needs a strength other than 0; move a slider'}"
    options = [f"--site={site}" for site in strengths]
    options += [f"--feature={i}:{w}" for i, w in asked.features]
    options += [f"--prompt={prompt}" for prompt in asked.prompts]
    options += [f"--strength={next(iter(strengths.values()))}", f"--method={method}", f"--tokens={asked.tokens}"]
    options += [f"--temperature={asked.temperature}", f"--seed={asked.seed}", *["--chat"] * asked.chat]
    return shlex.join(["atlas-jax", "steer", str(run), *options])


def _steered(asked: Steering) -> dict[str, float]:
    return {site: strength for site, strength in asked.strengths.items() if strength}
