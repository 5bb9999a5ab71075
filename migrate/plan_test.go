package migrate

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

func TestPolicyNames(t *testing.T) {
	for p := range wire.Placement_name {
		policy := wire.Placement(p)
		if policy == wire.Placement_PLACEMENT_UNSPECIFIED {
			continue
		}
		if got, err := PolicyOf(PolicyName(policy)); err != nil || got != policy {
			t.Errorf("%v: %v, %v", policy, got, err)
		}
	}
	if _, err := PolicyOf("random"); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
		t.Errorf("got %v", err)
	}
}

func TestPlaceByPolicy(t *testing.T) {
	ws := []Candidate{
		{ID: "a", Zone: "z1", Load: 10, Capacity: 1, Eligible: true},
		{ID: "b", Zone: "z1", Load: 9, Capacity: 1, Eligible: true},
		{ID: "c", Zone: "z2", Load: 12, Capacity: 1, Eligible: true},
		{ID: "d", Zone: "z3", Load: 0, Capacity: 1, Eligible: false},
	}
	if i, ok := PlaceBy(wire.Placement_PLACEMENT_LEAST_LOADED, "s", ws, PlacementFactor); !ok || ws[i].ID != "b" {
		t.Errorf("least loaded: %d", i)
	}
	if i, ok := PlaceBy(wire.Placement_PLACEMENT_ZONE_SPREAD, "s", ws, PlacementFactor); !ok || ws[i].ID != "c" {
		t.Errorf("zone spread: %d", i)
	}
	ws[2].Capacity = 100
	if i, _ := PlaceBy(wire.Placement_PLACEMENT_LEAST_LOADED, "s", ws, PlacementFactor); ws[i].ID != "c" {
		t.Errorf("least loaded by capacity: %d", i)
	}
	for _, policy := range []wire.Placement{0, 1, 2, 3} {
		if _, ok := PlaceBy(policy, "s", ws[3:], PlacementFactor); ok {
			t.Errorf("%v: placed where nobody is eligible", policy)
		}
	}
}

// A filling by each policy is as even as the policy says.
func TestPlaceByFills(t *testing.T) {
	fill := func(policy wire.Placement) (byWorker, byZone map[string]int) {
		ws := []Candidate{{ID: "a", Zone: "z1"}, {ID: "b", Zone: "z1"}, {ID: "c", Zone: "z1"}, {ID: "d", Zone: "z2"}}
		byWorker, byZone = map[string]int{}, map[string]int{}
		for i := range ws {
			ws[i].Eligible = true
		}
		for s := range 600 {
			i, _ := PlaceBy(policy, fmt.Sprint(s), ws, PlacementFactor)
			ws[i].Load++
			byWorker[ws[i].ID]++
			byZone[ws[i].Zone]++
		}
		return byWorker, byZone
	}
	if by, _ := fill(wire.Placement_PLACEMENT_LEAST_LOADED); by["a"] != 150 || by["d"] != 150 {
		t.Errorf("least loaded: %v", by)
	}
	if by, zones := fill(wire.Placement_PLACEMENT_ZONE_SPREAD); zones["z1"] != 300 || by["a"] > 126 {
		t.Errorf("zone spread: %v %v", by, zones)
	}
}

// A plan evens out, moves no more than it must, and is the same twice.
func TestPlanRebalance(t *testing.T) {
	for _, policy := range []wire.Placement{0, wire.Placement_PLACEMENT_LEAST_LOADED, wire.Placement_PLACEMENT_ZONE_SPREAD} {
		t.Run(PolicyName(policy), func(t *testing.T) {
			w := newWorld(t, "n1", "n2", "n3")
			for i := range 90 {
				w.open(fmt.Sprintf("s%02d", i), fmt.Sprint("n", 1+i%2), i%3 == 0)
			}
			opt := RebalanceOptions{Policy: policy}
			if policy == wire.Placement_PLACEMENT_ZONE_SPREAD { // all are in one zone
				opt.Policy = policy
			}
			plan := PlanRebalance(w.st, w.alive, opt)
			if len(plan.Moves) != 30 || plan.Left != 0 {
				t.Fatalf("%d moves, %d left", len(plan.Moves), plan.Left)
			}
			for id, n := range plan.After {
				if n != 30 {
					t.Errorf("%s has %d after it, %d before", id, n, plan.Before[id])
				}
			}
			for i, m := range plan.Moves {
				if m.To.GetWorker() != "n3" || m.From == "n3" || m.Epoch != w.row(m.Session).GetEpoch() || i > 0 && m.Session <= plan.Moves[i-1].Session {
					t.Errorf("move %+v", m)
				}
			}
			if again := PlanRebalance(w.st, w.alive, opt); !reflect.DeepEqual(plan, again) {
				t.Error("another plan for the same tables")
			}
			opt.MovesMax = 7
			if plan = PlanRebalance(w.st, w.alive, opt); len(plan.Moves) != 7 || plan.Left != 23 || plan.After["n3"] != 7 {
				t.Errorf("bounded: %d moves, %d left, after %v", len(plan.Moves), plan.Left, plan.After)
			}
		})
	}
}

func TestPlanRebalanceLeavesOut(t *testing.T) {
	w := newWorld(t, "n1", "n2", "n3", "n4")
	for i := range 40 {
		w.open(fmt.Sprintf("s%02d", i), "n1", false)
	}
	w.must(stateCommand("n2", wire.WorkerState_WORKER_STATE_DRAINING))
	w.hear("n3", false)
	plan := PlanRebalance(w.st, w.alive, RebalanceOptions{})
	if len(plan.Moves) != 20 || plan.After["n4"] != 20 || len(plan.Before) != 2 {
		t.Errorf("%d moves, before %v, after %v", len(plan.Moves), plan.Before, plan.After)
	}
	w.hear("n1", false)
	w.hear("n4", false)
	if plan = PlanRebalance(w.st, w.alive, RebalanceOptions{}); len(plan.Moves) != 0 {
		t.Errorf("planned without anybody: %+v", plan)
	}
}
