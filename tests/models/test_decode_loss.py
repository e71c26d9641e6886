"""Decoding and loss against code written the slow way, torchvision, and autograd."""
import math

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms, box_convert, complete_box_iou_loss

from models.graph import heads_of
from models.heads.anchor import match
from models.heads.loss import DetectionLoss
from models.heads.nms import detections
from models.layer import Layer, Net
from utils.boxes import ciou_pairs, cxcywh_to_xyxy, letterbox_geometry, scale_back

COARSE, FINE = ((40., 60.), (90., 50.)), ((10., 14.), (23., 27.))


def net_of(*heads: tuple[int, tuple, float, str]) -> Net:
    """Return a network of heads for 3 classes: stride, anchors, centre reach, rule of matching."""
    return tuple(row for stride, anchors, reach, rule in heads for row in (
        Layer(f"pool{stride}", "maxpool", ("image",), kernel=stride, stride=stride),
        Layer(f"head{stride}", "head", (f"pool{stride}",), 16, 1, kind="anchor", anchors=anchors,
              xy_scale=reach, assign=rule)))


NET = net_of((32, COARSE, 1.0, "best"), (16, FINE, 2.0, "ratio"))
SPECS = heads_of(NET)


def maps(batch: int = 2, classes: int = 3, seed: int = 0) -> list[torch.Tensor]:
    """Random raw maps of a 128 px input."""
    generator = torch.Generator().manual_seed(seed)
    out = [torch.randn(batch, 2, 5 + classes, 128 // s.stride, 128 // s.stride, generator=generator)
           for s in SPECS]
    for m in out:
        m[:, :, 2:4] *= 0.5                                # no box as large as several pictures by chance
    return out


def slow(raw: list[torch.Tensor], conf: float, multi: bool) -> list[list[tuple]]:
    """Boxes of each picture by loops over every cell, straight from the YOLOv3 and YOLOv4 papers."""
    out = []
    for b in range(raw[0].shape[0]):
        found = []
        for m, spec in zip(raw, SPECS):
            for a in range(m.shape[1]):
                for y in range(m.shape[3]):
                    for x in range(m.shape[4]):
                        t = m[b, a, :, y, x].double().tolist()
                        sig = [1 / (1 + math.exp(-v)) for v in t]
                        s, (aw, ah) = spec.layer.xy_scale, spec.layer.anchors[a]
                        cx, cy = ((sig[i] * s - (s - 1) / 2 + c) * spec.stride for i, c in ((0, x), (1, y)))
                        w, h = aw * math.exp(t[2]), ah * math.exp(t[3])
                        scores = [sig[4] * c for c in sig[5:]]
                        best = max(range(len(scores)), key=scores.__getitem__)
                        picks = range(len(scores)) if multi else [best]
                        found += [(cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, scores[k], k)
                                  for k in picks if scores[k] > conf]
        out.append(found)
    return out


@pytest.mark.parametrize("multi", [False, True])
def test_detections_are_those_of_a_loop_over_cells_and_torchvisions_nms(multi):
    raw = maps()
    found = detections(raw, SPECS, 0.2, 0.5, 50, multi_label=multi)
    for mine, reference in zip(found.boxes, slow(raw, 0.2, multi)):
        ref = torch.tensor(reference)
        ref = ref[batched_nms(ref[:, :4], ref[:, 4], ref[:, 5].long(), 0.5)[:50]]
        torch.testing.assert_close(torch.from_numpy(mine), ref.float(), rtol=1e-4, atol=1e-3)


def test_classes_and_max_det_limit_what_is_found():
    found = detections(maps(), SPECS, 0.1, 0.9, 3, classes=[1])
    assert all(len(b) <= 3 and set(b[:, 5].tolist()) <= {1.0} for b in found.boxes)


def test_non_finite_and_absurd_cells_are_dropped_and_counted():
    raw = maps(1)
    clean = detections([m.clone() for m in raw], SPECS, 0.01, 0.9, 1000)
    raw[0][0, 0, 4, 1, 1], raw[1][0, 1, 0, 2, 3] = float("nan"), float("inf")
    raw[1][0, 0, 4:, 0, 0], raw[1][0, 0, 2, 0, 0] = 9.0, 30.0       # a box e^8 anchors wide
    found = detections(raw, SPECS, 0.01, 0.9, 1000)
    assert found.dropped == 3 and clean.dropped == 0
    assert np.isfinite(found.boxes[0]).all() and len(found.boxes[0]) > 0


def test_nothing_above_the_threshold_is_an_empty_result():
    quiet = [torch.full((1, 2, 8, 4, 4), -9.0), torch.full((1, 2, 8, 8, 8), -9.0)]
    found = detections(quiet, SPECS, 0.5, 0.5, 10)
    assert found.boxes[0].shape == (0, 6)


def test_box_formats_and_letterbox_come_back():
    boxes = torch.rand(9, 4) * 50 + torch.tensor((0., 0., 50., 50.))
    torch.testing.assert_close(cxcywh_to_xyxy(box_convert(boxes, "xyxy", "cxcywh")), boxes)
    for height, width in ((375, 500), (500, 375), (33, 1000), (416, 416), (1, 1)):
        g = letterbox_geometry(height, width, 416)
        corner = torch.tensor([[g.left, g.top, g.left + g.width, g.top + g.height, .5, 1.]])
        torch.testing.assert_close(scale_back(corner, g, height, width)[0, :4],
                                   torch.tensor((0., 0., width, height)), atol=1e-2, rtol=1e-4)
        assert max(g.width, g.height) == 416 and g.left >= 0 and g.top >= 0


def test_ciou_is_torchvisions_and_finite_where_theirs_is_not():
    a, b = (torch.rand(200, 4, generator=torch.Generator().manual_seed(s)) + 0.05 for s in (0, 1))
    mine = 1 - ciou_pairs(a, b)[0]
    theirs = complete_box_iou_loss(cxcywh_to_xyxy(a), cxcywh_to_xyxy(b))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    a.requires_grad_()
    empty = torch.tensor([[.5, .5, 0., 0.]]).expand(200, 4)
    loss = (1 - ciou_pairs(a, empty)[0]).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(a.grad).all()
    assert float(ciou_pairs(a.detach(), empty)[1].abs().max()) == 0


def encode(target: torch.Tensor, assigned, spec) -> torch.Tensor:
    """Raw x, y, w, h that decode to the truth of each assigned prediction."""
    centre = target[:, :2] / spec.stride - torch.stack((assigned.x, assigned.y), 1)
    reach, anchors = spec.layer.xy_scale, torch.tensor(spec.layer.anchors)
    share = (centre + (reach - 1) / 2) / reach
    return torch.cat((torch.logit(share), torch.log(target[:, 2:] / anchors[assigned.anchor])), 1)


def test_every_assigned_prediction_can_reach_its_truth_and_a_perfect_answer_costs_nothing():
    generator = torch.Generator().manual_seed(3)
    truths = torch.rand(40, 6, generator=generator)
    truths[:, 0] = torch.arange(40) % 2
    truths[:, 1] = torch.arange(40) % 3
    truths[:, 4:] = truths[:, 4:] * 0.4 + 0.05
    raw = [torch.full_like(m, -12.0) for m in maps()]
    for m, spec, a in zip(raw, SPECS, match(SPECS, [m.shape for m in raw], truths)):
        code = encode(a.boxes, a, spec)
        assert torch.isfinite(code).all(), "a cell was given a truth its centre cannot reach"
        decoded = spec.boxes(code, torch.stack((a.x, a.y), 1), torch.tensor(spec.layer.anchors)[a.anchor])
        torch.testing.assert_close(decoded, a.boxes, rtol=1e-3, atol=1e-2)
        m[a.image, a.anchor, :4, a.y, a.x] = code
    one = truths[:1]
    m = [torch.full_like(x, -12.0) for x in raw]
    for x, spec, a in zip(m, SPECS, match(SPECS, [x.shape for x in m], one)):
        code = encode(a.boxes, a, spec)
        x[a.image, a.anchor, :4, a.y, a.x] = code
        x[a.image, a.anchor, 4, a.y, a.x] = 12.0
        x[a.image, a.anchor, 5 + a.classes, a.y, a.x] = 12.0
    terms = DetectionLoss(NET)(m, one)
    assert {k for k, v in terms.items() if float(v) < 0.02} == {"box", "obj", "cls"}, terms


def test_every_truth_is_answered_for_however_odd_its_shape():
    truths = torch.tensor([[0, 0, .5, .5, .9, .01], [0, 1, .5, .5, .004, .004], [1, 2, .99, .99, .02, .02],
                           [1, 0, 1., 1., .1, .1]])
    found = match(SPECS, [m.shape for m in maps()], truths)
    answered = {(int(i), int(c)) for a in found for i, c in zip(a.image, a.classes)}
    assert answered == {(0, 0), (0, 1), (1, 2), (1, 0)}
    for a, m in zip(found, maps()):
        assert (a.x < m.shape[4]).all() and (a.y < m.shape[3]).all() and (a.x >= 0).all() and (a.y >= 0).all()


def test_only_the_home_cell_answers_where_centres_cannot_leave_it():
    truths = torch.tensor([[0, 0, .51, .51, .3, .45]])
    coarse, fine = match(SPECS, [m.shape for m in maps()], truths)
    assert len(set(zip(coarse.x.tolist(), coarse.y.tolist()))) == 1
    tall = torch.tensor([[0, 0, .53, .47, .12, .12]])
    cells = match(SPECS, [m.shape for m in maps()], tall)[1][2:4]
    assert len(set(zip(*(v.tolist() for v in cells)))) == 3


def test_a_batch_without_truths_has_a_finite_loss_and_gradients():
    raw = [m.requires_grad_() for m in maps()]
    terms = DetectionLoss(NET)(raw, torch.zeros(0, 6))
    sum(terms.values()).backward()
    assert all(torch.isfinite(v) for v in terms.values()) and float(terms["box"].detach()) == 0
    grads = [m.grad for m in raw]
    assert all(g is not None and torch.isfinite(g).all() and g[:, :, 4].abs().sum() > 0 for g in grads)


def test_the_loss_gradient_is_the_numerical_one():
    truths = torch.tensor([[0, 0, .53, .47, .12, .12], [1, 2, .2, .8, .5, .4]], dtype=torch.float64)
    raw = [m.double().requires_grad_() for m in maps()]
    loss = DetectionLoss(NET)

    def boxes_and_classes(*inputs):
        terms = loss([i if i.dtype == torch.float64 else i for i in inputs], truths)
        return terms["box"] + terms["cls"]
    # float() inside the loss rounds to fp32, so compare with differences wide enough for that
    value = boxes_and_classes(*raw)
    value.backward()
    at = match(SPECS, [m.shape for m in raw], truths)[0]
    index = (int(at.image[0]), int(at.anchor[0]), 2, int(at.y[0]), int(at.x[0]))
    step = 1e-2
    sides = []
    for sign in (1, -1):
        moved = [m.detach().clone() for m in raw]
        moved[0][index] += sign * step
        sides.append(float(boxes_and_classes(*moved)))
    assert float(raw[0].grad[index]) == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=0.02, abs=1e-4)


def test_two_truths_on_one_prediction_ask_for_the_better_overlap_not_for_both():
    raw, one = maps(1), torch.tensor([[0, 1, .5, .5, .3, .4]])
    loss = DetectionLoss(NET)
    once, twice = loss(raw, one), loss(raw, one.repeat(2, 1))  # terms are divided by the number of positives
    torch.testing.assert_close(once["obj"], 2 * twice["obj"])
    torch.testing.assert_close(once["box"], twice["box"])


def test_a_head_without_reach_has_one_anchor_a_truth_the_one_of_the_best_shape():
    truths = torch.tensor([[0, 0, .3, .3, .4, .5], [1, 2, .7, .2, .1, .12], [1, 1, .2, .8, .6, .35]])
    classic = heads_of(net_of((32, COARSE, 1.0, "best"), (16, FINE, 1.0, "best")))
    found = match(classic, [m.shape for m in maps()], truths)
    assert sum(len(a.image) for a in found) == len(truths)
    anchors = torch.tensor([a for s in classic for a in s.layer.anchors])
    for row in truths:
        w, h = (row[4:] * 128).tolist()
        fits = [min(w, aw) * min(h, ah) / (w * h + aw * ah - min(w, aw) * min(h, ah))
                for aw, ah in anchors.tolist()]
        head, anchor = divmod(max(range(4), key=fits.__getitem__), 2)
        mine = found[head]
        assert [int(v) for v in mine.anchor[(mine.image == row[0]) & (mine.classes == row[1])]] == [anchor]


def test_a_prediction_close_to_a_truth_it_does_not_answer_for_is_no_background():
    net = net_of((32, COARSE, 1.0, "best"))
    spec = heads_of(net)[0]
    truth = torch.tensor([[0, 1, .5 / 4 + .25, .5 / 4 + .25, 40 / 128, 60 / 128]])
    raw = torch.full((1, 2, 8, 4, 4), -8.0)
    raw[:, :, :2] = 0.0
    raw[0, 1, 2:4, 1, 1] = torch.log(torch.tensor((40 / 90, 60 / 50)))     # the other anchor, on the same box
    raw[0, 0, 2:4, 1, 1] = 0.0
    near = spec.overlaps(raw, truth)
    assert float(near[0, 1, 1, 1]) == pytest.approx(1) and near.numel() - int((near < 0.7).sum()) == 2
    quiet = DetectionLoss(net)([raw], truth)["obj"]
    loud = raw.clone()
    loud[0, 1, 4, 1, 1] = 8.0                              # it may say "object" without being told off
    torch.testing.assert_close(DetectionLoss(net)([loud], truth)["obj"], quiet)
    loud[0, 1, 4, 3, 3] = 8.0
    assert float(DetectionLoss(net)([loud], truth)["obj"]) > float(quiet) + 5


def test_the_overlap_with_the_nearest_truth_is_torchvisions():
    from torchvision.ops import box_iou
    truths = torch.rand(7, 6, generator=torch.Generator().manual_seed(5)) * 0.4 + 0.2
    truths[:, 0] = torch.tensor([0, 0, 0, 2, 2, 2, 2])
    raw, spec = maps(3)[0], SPECS[0]
    near = spec.overlaps(raw, truths)
    for b, a, y, x in ((0, 0, 0, 0), (0, 1, 2, 3), (2, 0, 3, 1), (1, 1, 1, 1)):
        box = spec.boxes(raw[b, a, :, y, x][None], torch.tensor([[x, y]]), torch.tensor([COARSE[a]]))
        mine = cxcywh_to_xyxy(truths[truths[:, 0] == b, 2:6] * 128)
        want = box_iou(cxcywh_to_xyxy(box), mine).max() if len(mine) else torch.tensor(0.0)
        torch.testing.assert_close(near[b, a, y, x], want, rtol=1e-4, atol=1e-5)
