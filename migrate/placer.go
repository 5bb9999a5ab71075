package migrate

import (
	"fmt"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// placer places many sessions on one view of the workers, counting as it goes,
// so that a batch does not pile up on what looked empty at its start.
type placer struct {
	workers  []Candidate
	index    map[string]int
	active   int
	policy   wire.Placement
	eligible int
	homeless int // sessions without a valid owner that are still to be placed
}

// newPlacer looks at the workers in s. One that is not active, or fenced, or
// that gossip calls dead, or for which avoid is true, gets nothing.
func newPlacer(s *store.Store, alive func(string) (bool, bool), avoid func(id string) bool) *placer {
	counts := s.Counts()
	p := &placer{index: map[string]int{}, homeless: counts.Ownerless}
	owned := counts.Owned
	for _, w := range s.Workers() {
		ok := w.GetState() == wire.WorkerState_WORKER_STATE_ACTIVE
		if ok {
			p.active++
			if up, known := alive(w.GetId()); known && !up || avoid != nil && avoid(w.GetId()) {
				ok = false
			}
		}
		if ok {
			p.eligible++
		}
		p.index[w.GetId()] = len(p.workers)
		p.workers = append(p.workers, Candidate{
			ID: w.GetId(), Incarnation: w.GetIncarnation(), Load: owned[w.GetId()],
			Capacity: w.GetCapacity(), Eligible: ok, Zone: w.GetZone(),
		})
	}
	return p
}

// reassign chooses the next owner of a session that has no valid one, nil if
// there is no worker to take it. A session that had a client goes to its
// successor, where the client may be waiting, unless that is full. For any other
// the old owner's new incarnation is as good a choice as any: it no longer counts
// where it was.
func (p *placer) reassign(sum *store.Summary) *wire.Owner {
	from := sum.Owner.GetWorker()
	p.count(from, -1)
	i, ok := -1, false
	if sum.Attached > 0 {
		i, ok = Successor(sum.ID, from, p.workers)
		ok = ok && p.workers[i].Load < p.bound(i)
	}
	if !ok {
		i, ok = PlaceBy(p.policy, sum.ID, p.workers, PlacementFactor)
	}
	if !ok {
		p.count(from, 1)
		return nil
	}
	p.workers[i].Load++
	p.homeless--
	return &wire.Owner{Worker: p.workers[i].ID, Incarnation: p.workers[i].Incarnation}
}

// bound is what worker i is not filled beyond when all sessions without an owner
// have found one.
func (p *placer) bound(i int) int {
	total, capacity := p.homeless, 0.0
	for j := range p.workers {
		if w := &p.workers[j]; w.Eligible {
			total += w.Load
			capacity += w.weight()
		}
	}
	return p.workers[i].bound(total, capacity, PlacementFactor)
}

// elsewhere chooses a worker other than the session's own, nil if there is none.
func (p *placer) elsewhere(session, from string) *wire.Owner {
	if i, ok := p.index[from]; ok {
		was := p.workers[i].Eligible
		p.workers[i].Eligible = false
		defer func() { p.workers[i].Eligible = was }()
	}
	i, ok := PlaceBy(p.policy, session, p.workers, PlacementFactor)
	if !ok {
		return nil
	}
	p.workers[i].Load++
	p.count(from, -1)
	return &wire.Owner{Worker: p.workers[i].ID, Incarnation: p.workers[i].Incarnation}
}

// takes reports whether a worker may be given sessions.
func (p *placer) takes(id string) bool {
	i, ok := p.index[id]
	return ok && p.workers[i].Eligible
}

func (p *placer) count(id string, n int) {
	if i, ok := p.index[id]; ok {
		p.workers[i].Load = max(p.workers[i].Load+n, 0)
	}
}

// err says why nothing can be placed, nil if something can.
func (p *placer) err() error {
	switch {
	case p.eligible > 0:
		return nil
	case p.active > 0:
		return wire.Errorf(wire.Code_NO_TARGET, "no active worker seems alive; wait, or start one")
	}
	return wire.Errorf(wire.Code_NO_TARGET, "no worker is active; start one, or end a drain")
}

// assignCommand gives the session of sum to worker to.
func assignCommand(s *store.Store, sum *store.Summary, to *wire.Owner, by string) *wire.Command {
	return &wire.Command{Kind: &wire.Command_Assign{Assign: &wire.Assign{
		Session: sum.ID, Replaces: sum.Epoch, Owner: to, Reason: whyOwnerless(s, sum.Owner), By: by,
	}}}
}

// whyOwnerless is for the session's history.
func whyOwnerless(s *store.Store, o *wire.Owner) string {
	w := s.Worker(o.GetWorker())
	switch {
	case w == nil:
		return "owner unknown"
	case w.GetIncarnation() != o.GetIncarnation():
		return "owner restarted"
	case w.GetReason() != "":
		return clip(fmt.Sprintf("owner fenced: %s", w.GetReason()), whyBytesMax)
	}
	return "owner fenced"
}
