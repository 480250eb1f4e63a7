"""The model of scene graphs against loops over boxes and pairs, its loss by hand, and the simulated detector."""

import math

import pytest
import torch
from torch import Tensor

from gradoscope.errors import CannotRun
from gradoscope.guard import private_random
from gradoscope.structured.detections import BOX_FEATURES, Loader, detections, geometry, join, targets
from gradoscope.structured.graphs import Graphs
from gradoscope.structured.scene_model import SceneModel, predictions, scene_loss
from gradoscope.structured.scenes import SceneGraph

LINKS = ("none", "sum", "mean", "neighbour", "feature")
C, P = 5, 3  # classes; predicates with "no relation"


def graphs(seed: int, sizes: tuple[int, ...] = (4, 2, 3)) -> list[SceneGraph]:
    """Random images."""
    random, found = torch.Generator().manual_seed(seed), []
    for k, n in enumerate(sizes):
        low = 50 * torch.rand(n, 2, generator=random)
        boxes = torch.cat([low, low + 1 + 40 * torch.rand(n, 2, generator=random)], 1)
        pairs = (torch.rand(n, n, generator=random) < 0.5) & ~torch.eye(n, dtype=torch.bool)
        s, o = pairs.nonzero().unbind(1)
        triplets = torch.stack([s, torch.randint(P - 1, (len(s),), generator=random), o], 1)
        found.append(SceneGraph(str(k), boxes, torch.randint(C, (n,), generator=random), triplets))
    return found


def model(link: str, **options: object) -> SceneModel:
    made = SceneModel(
        C,
        P,
        link=link,
        width=4,
        hidden=[6, 5],
        generator=torch.Generator().manual_seed(3),
        **{"dropout": 0.0, "steps": 2, "rectified": True, "features": "centred", **options},
    )
    return made.double().eval()


def linear(layer: torch.nn.Module, *parts: Tensor) -> Tensor:
    return layer.weight @ torch.cat(parts) + layer.bias


def mlp(on_parts: torch.nn.Module, *parts: Tensor) -> Tensor:
    x = linear(on_parts.first, *parts)
    for layer in on_parts.rest:
        x = layer(x)
    return x


def changed(gated: torch.nn.Module, old: Tensor, *parts: Tensor) -> Tensor:
    return mlp(gated.change, *parts) + torch.sigmoid(linear(gated.gate, *parts)) * old


def pooled(values: list[Tensor], scores: list[Tensor] | None, link: str) -> Tensor:
    """Of a list that is not empty."""
    stacked = torch.stack(values)
    if scores is not None:
        return (stacked * torch.stack(scores).softmax(0)).sum(0)
    return stacked.mean(0) if link == "mean" else stacked.sum(0)


def slow(net: SceneModel, nodes: Tensor, edges: Tensor, link: str) -> list[tuple[Tensor, Tensor]]:
    """The formulas of the specification for one image, box by box and pair by pair."""
    n, step, answers = len(nodes), net.step, []
    entity, boxes, relation = nodes[:, :C], nodes[:, C:], edges
    for _ in range(net.steps):
        entity, relation = torch.log(entity.softmax(1) + 1e-10), torch.log(relation.softmax(2) + 1e-10)
        z = [torch.cat([(entity[i] - entity[i].mean()) / 2, boxes[i]]) for i in range(n)]
        e = [[(relation[i, j] - relation[i, j].mean()) / 2 for j in range(n)] for i in range(n)]
        context: list[tuple[Tensor, ...]] = [()] * n
        graph: tuple[Tensor, ...] = ()
        if link != "none":
            s = []
            for i in range(n):
                others = [j for j in range(n) if j != i]
                values = [torch.relu(linear(step.phi.first, z[i], e[i][j], z[j])) for j in others]
                scores = [linear(step.phi_score, z[i], e[i][j], z[j]) for j in others] if step.phi_score else None
                s.append(pooled(values, scores, link))
            values = [torch.relu(linear(step.alpha.first, z[i], s[i])) for i in range(n)]
            scores = [linear(step.alpha_score, z[i], s[i]) for i in range(n)] if step.alpha_score else None
            graph = (pooled(values, scores, link),)
            context = [(s[i], *graph) for i in range(n)]
        new = torch.stack([changed(step.rho, entity[i], z[i], *context[i]) for i in range(n)])
        pairs = relation.clone()
        for i in range(n):
            for j in range(n):
                if i != j:
                    pairs[i, j] = changed(step.rho_pair, relation[i, j], z[i], e[i][j], z[j], *graph)
        entity, relation = new, pairs
        answers.append((entity, relation))
    return answers


@pytest.mark.parametrize("link", LINKS)
def test_a_padded_batch_is_equal_to_loops(link):
    net, images = model(link), detections(graphs(1), C, P - 1, torch.Generator().manual_seed(2))
    batch = join(images).graphs.to(torch.float64)
    with torch.no_grad():
        fast = net(batch.nodes, batch.edges, batch.mask)
        for b, image in enumerate(images):
            n = len(image.labels)
            beside = ~torch.eye(n, dtype=torch.bool)
            for (boxes, pairs), (e, r) in zip(slow(net, image.nodes.double(), image.edges.double(), link), fast, strict=True):
                assert torch.allclose(e[b, :n], boxes, atol=1e-11)
                assert torch.allclose(r[b, :n, :n][beside], pairs[beside], atol=1e-11)


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("words", [False, True])
def test_renaming_boxes_renames_outputs(link, words):
    random = torch.Generator().manual_seed(4)
    vectors = (torch.randn(C, 3, generator=random), torch.randn(P, 2, generator=random)) if words else None
    net, batch = model(link, words=vectors), join(detections(graphs(5), C, P - 1, random)).graphs.to(torch.float64)
    order = torch.stack([torch.randperm(4, generator=random) for _ in range(3)])
    other = batch.permuted(order)
    with torch.no_grad():
        pairs = zip(net(batch.nodes, batch.edges, batch.mask), net(other.nodes, other.edges, other.mask), strict=True)
        for (e, r), (f, q) in pairs:
            renamed = Graphs(e, r, batch.mask).permuted(order)
            assert float(((renamed.nodes - f) * other.mask[..., None]).abs().max()) < 1e-12
            assert float(((renamed.edges - q) * other.pair_mask()[..., None]).abs().max()) < 1e-12


def test_without_context_a_box_depends_on_itself_alone_and_with_it_on_all():
    (image,) = detections(graphs(6, (4,)), C, P - 1, torch.Generator().manual_seed(0))
    nodes, edges, mask = image.nodes[None].double(), image.edges[None].double(), torch.ones(1, 4, dtype=torch.bool)
    other = nodes.clone()
    other[0, 3, :C] += torch.arange(C)
    for link in LINKS:
        net = model(link)
        with torch.no_grad():
            change = (net(nodes, edges, mask)[-1][0] - net(other, edges, mask)[-1][0])[0, :3].abs().amax(1)
        assert bool((change == 0).all()) if link == "none" else bool((change > 1e-9).all())


def test_word_vectors_enter_times_their_probability():
    vectors = (torch.eye(C), torch.eye(P))
    net = model("mean", words=vectors, learn_words=True)
    entity, relation = torch.randn(1, 2, C).double().log_softmax(-1), torch.randn(1, 2, 2, P).double().log_softmax(-1)
    nodes, edges = net._features(entity, relation, torch.zeros(1, 2, BOX_FEATURES).double())
    assert nodes.shape == (1, 2, 2 * C + BOX_FEATURES)
    assert torch.allclose(nodes[..., -C:].sum(-1), entity.exp().amax(-1))
    assert bool((nodes[..., -C:].argmax(-1) == entity.argmax(-1)).all())
    assert edges.shape == (1, 2, 2, 2 * P)
    assert all(p.requires_grad for p in net.words)
    assert not any(p.requires_grad for p in model("mean", words=vectors).words)
    with pytest.raises(CannotRun, match="word vectors"):
        model("mean", words=(torch.eye(C), torch.eye(C)))


def test_published_sizes():
    """Linear phi and alpha with 500 outputs, MLPs of 500-500-500, gates of 150 and of 1, features that are not centred."""
    net = SceneModel(150, 51, generator=torch.Generator().manual_seed(0))
    z, e, w = 150 + BOX_FEATURES, 51, 500
    pooling = 2 * ((2 * z + e) * w + w) + 2 * ((z + w) * w + w)
    hidden = 2 * (w * w + w)
    entity = (z + 2 * w) * w + w + hidden + w * 150 + 150 + (z + 2 * w) * 150 + 150
    pair = (2 * z + e + w) * w + w + hidden + w * 51 + 51 + (2 * z + e + w) + 1
    assert sum(p.numel() for p in net.parameters()) == pooling + entity + pair
    assert (net.steps, net.dropout.p, net.features) == (2, 0.1, "published")
    with pytest.raises(CannotRun, match="`link`"):
        SceneModel(3, 2, link="all")
    with pytest.raises(CannotRun, match="'loud'"):
        SceneModel(3, 2, features="loud")


def test_what_the_logarithms_are_to_the_layers():
    logs, boxes = torch.randn(1, 2, C).double().log_softmax(-1), torch.ones(1, 2, BOX_FEATURES).double()
    pairs = torch.randn(1, 2, 2, P).double().log_softmax(-1)
    seen = {f: model("mean", features=f)._features(logs, pairs, boxes)[0] for f in ("published", "faint", "centred")}
    assert torch.equal(seen["published"], torch.cat([logs, boxes], -1))
    assert torch.allclose(seen["faint"][..., :C], logs / 10)
    assert torch.allclose(seen["centred"][..., :C].mean(-1), torch.zeros(1, 2).double(), atol=1e-12)


def test_the_loss_by_loops():
    random = torch.Generator().manual_seed(7)
    batch = join(detections(graphs(8), C, P - 1, random))
    outputs = [(torch.randn(3, 4, C, generator=random), torch.randn(3, 4, 4, P, generator=random)) for _ in range(2)]
    positives = int(((batch.predicates >= 0) & (batch.predicates < P - 1)).sum())
    negatives = int((batch.predicates == P - 1).sum())
    for ratio in (0.5, 50.0):
        share = min(1.0, ratio * positives / negatives)
        slow_loss = 0.0
        for boxes, pairs in outputs:
            entity, relation, weight, count = 0.0, 0.0, 0.0, 0
            for b in range(3):
                for i in range(4):
                    if batch.labels[b, i] >= 0:
                        entity -= float(boxes[b, i].log_softmax(0)[batch.labels[b, i]])
                        count += 1
                    for j in range(4):
                        p = int(batch.predicates[b, i, j])
                        if p >= 0:
                            each = share if p == P - 1 else 1.0
                            relation -= each * float(pairs[b, i, j].log_softmax(0)[p])
                            weight += each
            slow_loss += relation / weight + 4 * entity / count
        assert float(scene_loss(outputs, batch.labels, batch.predicates, background=ratio)) == pytest.approx(slow_loss, rel=1e-5)


def test_a_batch_without_relations_has_a_loss():
    image = SceneGraph.of("a", [[0, 0, 1, 1], [0, 0, 2, 2]], [0, 1], [])
    batch = join(detections([image], C, P - 1, torch.Generator().manual_seed(0)))
    net = model("feature").train()
    loss = scene_loss(net(batch.graphs.nodes.double(), batch.graphs.edges.double(), batch.graphs.mask), batch.labels, batch.predicates)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())


def test_targets_and_geometry():
    graph = SceneGraph.of("a", [[0, 0, 10, 5], [5, 5, 10, 10]], [0, 1], [[0, 1, 1], [0, 0, 1], [1, 0, 1]])
    assert targets(graph, 2).tolist() == [[-1, 1], [2, -1]]  # the first of two predicates; a relation to itself is none
    numbers = geometry(graph.boxes, (10, 10))
    assert numbers.shape == (2, BOX_FEATURES)
    assert numbers[0].tolist() == pytest.approx([0, 0, 1, 0.5, 0.5, 0.25, 1, 0.5, 0.5, 0, *[math.log(0.5)] * 2, math.log(2), 0.25])
    assert torch.allclose(geometry(graph.boxes), numbers)  # the boxes cover the image
    assert geometry(torch.zeros(0, 4)).shape == (0, BOX_FEATURES)
    assert bool(geometry(torch.zeros(1, 4)).isfinite().all())


def test_the_detector_is_as_noisy_as_it_should_be():
    many = SceneGraph("a", torch.rand(3000, 4).cumsum(1), torch.arange(3000) % 100, torch.zeros(0, 3, dtype=torch.int64))
    few = [SceneGraph(str(k), many.boxes[k : k + 10], many.labels[k : k + 10], many.relations) for k in range(0, 3000, 10)]
    found = detections(few, 100, 2, torch.Generator().manual_seed(0))
    right = torch.cat([i.nodes[:, :100].argmax(1) == i.labels for i in found]).double().mean()
    assert float(right) == pytest.approx(0.493, abs=0.04)  # an independent prototype's number; four standard errors
    rest = torch.cat([(i.nodes[:, :100] - 4 * torch.nn.functional.one_hot(i.labels, 100)).flatten() for i in found])
    assert (float(rest.mean()), float(rest.std())) == (pytest.approx(0, abs=0.012), pytest.approx(1.6, abs=0.01))
    again = detections(few[:2], 100, 2, torch.Generator().manual_seed(0))
    assert torch.equal(again[1].nodes, found[1].nodes)
    with pytest.raises(CannotRun, match="without a class"):
        detections([SceneGraph.of("b", [[0, 0, 1, 1]], [-1], [])], 3, 2, torch.Generator())


def test_predictions_keep_the_order_and_the_mode():
    images = detections(graphs(9, (3, 5, 2, 3)), C, P - 1, torch.Generator().manual_seed(1))
    net = model("feature", dropout=0.5).float().train()
    together, alone = predictions(net, images, C), [predictions(net, [i], C) for i in images]
    assert net.training
    assert len(together) == 2
    for step in range(2):
        for k, image in enumerate(images):
            e, r = together[step][k]
            assert e.shape == (len(image.labels), C)
            assert torch.allclose(e, alone[k][step][0][0], atol=1e-5)
            assert torch.allclose(r, alone[k][step][0][1], atol=1e-5)
            assert torch.allclose(e.exp().sum(1), torch.ones(len(e)), atol=1e-5)
    (detector,) = predictions(None, images, C)
    assert torch.equal(detector[0][0].argmax(1), images[0].nodes[:, :C].argmax(1))


def test_each_pass_has_every_image_once_in_another_order():
    images = detections(graphs(10, (2, 3, 2, 3, 2)), C, P - 1, torch.Generator().manual_seed(1))
    loader = Loader(images, 2, torch.Generator().manual_seed(2))
    passes = [[round(float(row.sum()), 3) for batch in loader for row in batch[0]] for _ in range(6)]
    assert all(sorted(p) == sorted(passes[0]) for p in passes)
    assert len({tuple(p) for p in passes}) > 1


def test_dropout_drops_in_training_only():
    net = model("mean", dropout=0.5)
    batch = join(detections(graphs(1), C, P - 1, torch.Generator().manual_seed(2))).graphs.to(torch.float64)
    with private_random(0), torch.no_grad():
        first, second = (net(batch.nodes, batch.edges, batch.mask)[-1][0] for _ in range(2))
        assert torch.equal(first, second)
        net.train()
        first, second = (net(batch.nodes, batch.edges, batch.mask)[-1][0] for _ in range(2))
        assert not torch.equal(first, second)
