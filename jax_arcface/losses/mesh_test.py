"""Losses on a mesh of 8 devices against a single device, in a process of its own, which has 8."""

import functools
import json
import os
import re
import subprocess
import sys

import pytest

MESHES = {"1x8": (1, 8), "2x4": (2, 4), "8x1": (8, 1), "1x1": (1, 1)}
EXACT = 1e-12  # of float64, relative to the largest number


def in_process(*words):
    """What this file prints as a program with 8 devices, from JSON."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_ENABLE_X64": "1"}
    done = subprocess.run([sys.executable, __file__, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def check_margins(found):
    """Numbers of one device; no collective moves more than a device's own rows; only the dense loss has logits."""
    for axes, losses in found.items():
        for name, one in losses.items():
            assert one["error"] < EXACT, (axes, name)
            if name != "nearest":
                assert max(one["moved"], default=0) <= one["own"], (axes, name)
                assert one["rows"] == one["own_rows"], (axes, name)
                assert one["logits"] == (name == "dense"), (axes, name)


def test_the_fused_loss_on_a_mesh():
    found = in_process("margins", "2x4", "fused")
    assert set(found) == {"explicit", "auto", "manual"}
    check_margins(found)


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES)
def test_margin_losses_and_the_nearest_class_on_every_mesh(shape):
    check_margins(in_process("margins", shape, "dense,fused,subcenters,nearest"))


@pytest.mark.slow
def test_classes_that_no_axis_divides_and_vmap_and_a_batch_gathered_inside_shard_map():
    found = in_process("others")
    assert max(found[name] for name in ("odd", "vmap", "outside jit", "gathered", "memory", "moved")) < EXACT
    assert found["nearest"] == 0


@pytest.mark.slow
def test_every_loss_of_the_registry():
    for axes, losses in in_process("registry", "2x4", "explicit").items():
        assert len(losses) > 20
        for name, error in losses.items():
            assert error < EXACT, (axes, name)


@pytest.mark.slow
def test_partial_fc_moves_the_sampled_rows_as_one_device_would():
    for axes, found in in_process("partial").items():
        assert found["error"] < EXACT, axes
        assert found["moved"] <= found["own"], axes


@pytest.mark.slow
def test_a_hundred_steps_are_those_of_one_device():
    for shape, error in in_process("steps").items():
        assert error < 1e-10, shape


# ---- the program


def _main(what, shape="2x4", names=""):
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    from jax_arcface.losses import terms
    from jax_arcface.losses.fused import fused_margin_softmax_loss, nearest_class
    from jax_arcface.losses.margins import Margin
    from jax_arcface.losses.memory import empty_memory, remember
    from jax_arcface.losses.mesh import gathered, moved
    from jax_arcface.losses.pairs import supcon_loss, triplet_loss
    from jax_arcface.losses.partial import sample_classes, take_rows, update_rows
    from jax_arcface.losses.registry import LOSSES, Inputs
    from jax_arcface.losses.regularizers import intra_loss
    from jax_arcface.losses.softmax import margin_softmax_loss

    rng = np.random.default_rng(0)
    batch, classes, dim = 16, 56, 6
    x, w = rng.normal(size=(batch, dim)), rng.normal(size=(classes, dim))
    w3 = rng.normal(size=(classes, 2, dim))
    labels, weights = rng.integers(0, classes, batch), rng.integers(0, 3, batch).astype(float)
    margin = Margin(1.0, 0.4, 0.1)
    options = {"scale": 8.0, "label_smoothing": 0.1, "filter_above": 0.7, "reduction": "none"}
    dense = functools.partial(margin_softmax_loss, margin=margin, **options)
    fused = functools.partial(fused_margin_softmax_loss, margin=margin, block_size=4, **options)
    losses = {"dense": (dense, w), "fused": (fused, w), "subcenters": (fused, w3)}

    def mesh_of(shape, kind=AxisType.Explicit):
        return jax.make_mesh(MESHES[shape], ("data", "classes"), axis_types=(kind, kind))

    def put(array, mesh, *axes):
        return jax.device_put(array, NamedSharding(mesh, P(*axes)))

    def error(found, expected):
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
        return float(np.max([np.abs(np.asarray(a) - np.asarray(b)).max() / (np.abs(b).max() or 1) for a, b in pairs]))

    def gradients(loss):
        def weighted(x, w, labels, weights):
            each = loss(x, w, labels, weights=weights)
            return jnp.sum(jnp.sin(each)), each

        return jax.jit(jax.value_and_grad(weighted, (0, 1), has_aux=True))

    def manual(loss, mesh):
        """Inside a `shard_map` of the user's own, which adds up over `data`."""

        def here(x, w, labels, weights):
            each = loss(x, w, labels, weights=weights)
            return jax.lax.psum(jnp.sum(jnp.sin(each)), "data"), each

        specs = P("data"), P("classes"), P("data"), P("data")
        spread = jax.shard_map(here, mesh=mesh, in_specs=specs, out_specs=(P(), P("data")))
        return jax.jit(jax.value_and_grad(spread, (0, 1), has_aux=True))

    def margins():
        report = {}
        for axes in ("explicit", "auto", "manual"):
            mesh = mesh_of(shape, AxisType.Explicit if axes == "explicit" else AxisType.Auto)
            data, parts = mesh.devices.shape
            examples = [put(array, mesh, "data") for array in (labels, weights)]
            report[axes] = {}
            for name in names.split(","):
                if name == "nearest":
                    nearest = functools.partial(nearest_class, block_size=4)
                    specs = {"in_specs": (P("data"), P("classes")), "out_specs": P("data")}
                    spread = jax.shard_map(nearest, mesh=mesh, **specs) if axes == "manual" else nearest
                    found = spread(put(x, mesh, "data"), put(w, mesh, "classes"))
                    report[axes][name] = {"error": int(np.abs(found - nearest_class(x, w)).max())}
                    continue
                loss, rows = losses[name]
                function = manual(loss, mesh) if axes == "manual" else gradients(loss)
                arguments = put(x, mesh, "data"), put(rows, mesh, "classes"), *examples
                compiled = function.lower(*arguments).compile()
                found, text = compiled(*arguments), compiled.as_text()
                report[axes][name] = {
                    "error": error(found, gradients(loss)(x, rows, labels, weights)),
                    "rows": found[1][1].sharding.shard_shape(rows.shape)[0],
                    "moved": collective_sizes(text),
                    "own_rows": classes // parts,
                    "own": max(rows.size // parts, x.size // data),
                    "logits": any(
                        f"f64[{shape}]" in text
                        for shape in (f"{batch // data},{classes // parts}", f"{classes // parts},{batch // data}")
                    ),
                }
        return report

    def others():
        with jax.set_mesh(mesh_of(shape, AxisType.Auto)):
            found = gradients(fused)(x, w[:43], labels % 43, weights)
            near = nearest_class(x, w[:43], block_size=4)
        expected = gradients(fused)(x, w[:43], labels % 43, weights)
        mesh, two = mesh_of(shape), np.stack([x, -x])
        many = jax.vmap(lambda x, w, labels: fused(x, w, labels), (0, None, None))
        spread = many(put(two, mesh, None, "data"), put(w, mesh, "classes"), put(labels, mesh, "data"))

        def of_whole_batch(x, labels):
            return triplet_loss(gathered(x, "data"), gathered(labels, "data"), mining="hard")

        pairs = jax.shard_map(of_whole_batch, mesh=mesh, in_specs=P("data"), out_specs=P())
        three = put(w, mesh, "classes"), put(labels, mesh), put(x, mesh)
        here = jax.shard_map(moved, mesh=mesh, in_specs=(P("classes"), P(), P()), out_specs=P("classes"))

        @jax.jit
        def with_memory(x, labels):
            memory = remember(empty_memory(40, dim, float), x[::-1], labels[::-1])
            return jax.value_and_grad(lambda x: supcon_loss(x, labels, memory=remember(memory, -x, labels)))(x)

        alone = jax.value_and_grad(functools.partial(triplet_loss, mining="hard"))(x, labels % 5)
        return {
            "outside jit": error(
                intra_loss(put(x, mesh, "data"), put(w, mesh, "classes"), put(labels, mesh, "data")),
                intra_loss(x, w, labels),
            ),
            "gathered": error(
                jax.jit(jax.value_and_grad(pairs))(*(put(a, mesh, "data") for a in (x, labels % 5))), alone
            ),
            "memory": error(
                with_memory(put(x, mesh, "data"), put(labels % 5, mesh, "data")), with_memory(x, labels % 5)
            ),
            "moved": error([jax.jit(moved)(*three), jax.jit(here)(*three)], [moved(jnp.asarray(w), labels, x)] * 2),
            "odd": error(found, expected),
            "nearest": int(np.abs(near - nearest_class(x, w[:43])).max()),
            "vmap": error(spread, many(two, w, labels)),
        }

    def collective_sizes(text):
        """How many numbers the collectives of a compiled program give, each."""
        found = re.findall(r"= (.*?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)", text)
        shapes = [shape for result in found for shape in re.findall(r"f64\[([\d,]*)\]", result)]
        return [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]

    def registry():
        entries = {name: getattr(terms, {"range": "range_"}.get(name, name))() for name in LOSSES}
        owned = {"prototypes": w, "bias": rng.normal(size=classes), "centers": w[::-1].copy()}
        arrays = x, owned, labels % 5, rng.normal(size=batch), weights
        specs = P("data"), P("classes"), P("data"), P("data"), P("data")

        def all_of(x, owned, labels, normal, weights):
            """Of each loss the gradients by all that it owns, the value and the state."""

            def outcomes(x, owned):
                results, prototypes = {}, owned["prototypes"]
                for name, objective in entries.items():
                    rows = prototypes if objective.subcenters == 1 else jnp.stack([prototypes, -prototypes[:, ::-1]], 1)
                    inputs = Inputs(x, labels, owned | {"prototypes": rows}, 3, normal, weights)
                    outcome = objective.apply(inputs, objective.init(classes, dim))
                    results[name] = outcome.loss, outcome.state
                return {name: loss for name, (loss, _) in results.items()}, results

            gradients, results = jax.jacrev(outcomes, (0, 1), has_aux=True)(x, owned)
            return {name: (gradients[name], results[name]) for name in entries}

        expected, report = jax.jit(all_of)(*arrays), {}
        for axes in names.split(",") if names else ("explicit", "auto", "manual"):
            if axes == "manual" and shape != "1x8":
                continue  # a device's batch is its own there
            mesh = mesh_of(shape, AxisType.Explicit if axes == "explicit" else AxisType.Auto)
            there = jax.device_put(arrays, tuple(NamedSharding(mesh, spec) for spec in specs))
            function = all_of
            if axes == "manual":
                specs = tuple(P(None) if spec == P("data") else spec for spec in specs)
                states = {name: objective.init(classes, dim) for name, objective in entries.items()}
                states = {
                    name: {key: P("classes") if key == "centers" else P() for key in state}
                    for name, state in states.items()
                }
                out = {name: ((P(), P("classes")), (P(), states[name])) for name in entries}
                function = jax.shard_map(all_of, mesh=mesh, in_specs=specs, out_specs=out)
            found = jax.jit(function)(*there)
            report[axes] = {name: error(found[name], expected[name]) for name in entries}
        return report

    def partial():
        optimizer, report = optax.adam(0.1), {}
        for kind in (AxisType.Explicit, AxisType.Auto):
            mesh = mesh_of(shape, kind)
            parts = mesh.devices.shape[1]

            @jax.jit
            def step(x, w, labels, state):
                sample = sample_classes(jax.random.key(0), labels, w, share=0.5)

                def loss_of(x, some):
                    return fused_margin_softmax_loss(x, some, sample.labels, margin, 8.0, block_size=4)

                gradients = jax.grad(loss_of, (0, 1))(x, take_rows(w, sample))
                return *update_rows(optimizer, gradients[1], state, w, sample), gradients[0], sample

            there = put(w, mesh, "classes")
            memory = jax.tree.map(
                lambda x, mesh=mesh: put(x, mesh, *(("classes",) if x.ndim else ())), optimizer.init(w)
            )
            compiled = step.lower(put(x, mesh, "data"), there, put(labels, mesh), memory).compile()
            new, state, dx, sample = compiled(put(x, mesh, "data"), there, put(labels, mesh), memory)
            rows = np.asarray(sample.rows).reshape(parts, -1)
            rows = (rows + classes // parts * np.arange(parts)[:, None]).ravel()
            assert (rows[np.asarray(sample.labels)] == labels).all()

            def loss_alone(x, some, place):
                return margin_softmax_loss(x, some, place, margin, 8.0)

            edx, drows = jax.grad(loss_alone, (0, 1))(x, jnp.asarray(w[rows]), np.searchsorted(rows, labels))
            updates, of_rows = optimizer.update(drows, optimizer.init(w[rows]))
            expected = w.copy()
            expected[rows] += updates
            found = (new, dx, *(np.asarray(m)[rows] if m.ndim else m for m in jax.tree.leaves(state)))
            report[kind.name] = {
                "error": error(found, (expected, edx, *jax.tree.leaves(of_rows))),
                "moved": max(collective_sizes(compiled.as_text())),
                "own": max(len(rows) // parts * dim, x.size),
            }
        return report

    def steps():
        images = rng.normal(size=(100, batch, 9))
        wanted, projection = rng.integers(0, classes, (100, batch)), rng.normal(size=(9, dim))

        def train(mesh):
            def placed(array, *axes):
                return array if mesh is None else put(array, mesh, *axes)

            params = placed(projection), placed(w, "classes")
            velocity = jax.tree.map(lambda p: 0 * p, params)

            @jax.jit
            def step(params, velocity, images, labels):
                def loss(params):
                    return fused_margin_softmax_loss(
                        jnp.tanh(images @ params[0]), params[1], labels, margin, 8.0, block_size=4
                    )

                value, gradients = jax.value_and_grad(loss)(params)
                velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradients)
                return jax.tree.map(lambda p, v: p - 0.1 * v, params, velocity), velocity, value

            values = []
            for some, of_some in zip(images, wanted, strict=True):
                params, velocity, value = step(params, velocity, placed(some, "data"), placed(of_some, "data"))
                values.append(float(value))
            return params, np.array(values)

        expected = train(None)
        return {name: error(train(mesh_of(name)), expected) for name in MESHES}

    programs = {"margins": margins, "others": others, "registry": registry, "partial": partial, "steps": steps}
    print(json.dumps(programs[what]()))


if __name__ == "__main__":
    _main(*sys.argv[1:])
