package migrate

import (
	"cmp"

	"github.com/baton-cluster/baton/wire"
)

// PolicyOf is the placement policy that a name stands for: bounded_load (also
// the empty name), least_loaded or zone_spread.
func PolicyOf(name string) (wire.Placement, error) {
	switch name {
	case "", "bounded_load":
		return wire.Placement_PLACEMENT_BOUNDED_LOAD, nil
	case "least_loaded":
		return wire.Placement_PLACEMENT_LEAST_LOADED, nil
	case "zone_spread":
		return wire.Placement_PLACEMENT_ZONE_SPREAD, nil
	}
	return 0, wire.Errorf(wire.Code_BAD_REQUEST, "%q is no placement policy: use bounded_load, least_loaded or zone_spread", name)
}

// PolicyName is the name of a policy.
func PolicyName(p wire.Placement) string {
	switch p {
	case wire.Placement_PLACEMENT_LEAST_LOADED:
		return "least_loaded"
	case wire.Placement_PLACEMENT_ZONE_SPREAD:
		return "zone_spread"
	}
	return "bounded_load"
}

// PlaceBy chooses a worker for session by a policy: Place; the worker with the
// fewest sessions for its capacity; or, in the zone with the fewest sessions,
// Place. Ties are broken by rendezvous hashing, so the order of workers does not
// matter. ok is false if none is eligible.
func PlaceBy(policy wire.Placement, session string, workers []Candidate, factor float64) (index int, ok bool) {
	switch policy {
	case wire.Placement_PLACEMENT_LEAST_LOADED:
		return placeLeast(session, workers)
	case wire.Placement_PLACEMENT_ZONE_SPREAD:
		return placeInZone(session, workers, factor)
	}
	return Place(session, workers, factor)
}

func placeLeast(session string, workers []Candidate) (int, bool) {
	best := -1
	var least, score float64
	for i := range workers {
		w := &workers[i]
		if !w.Eligible {
			continue
		}
		load, s := float64(w.Load+1)/w.weight(), w.score(session)
		if best < 0 || load < least || load == least && (s > score || s == score && w.ID < workers[best].ID) {
			best, least, score = i, load, s
		}
	}
	return best, best >= 0
}

func placeInZone(session string, workers []Candidate, factor float64) (int, bool) {
	loads := zoneLoads(workers)
	zone, found := "", false
	for i := range workers {
		w := &workers[i]
		if w.Eligible && (!found || cmp.Or(cmp.Compare(loads[w.Zone], loads[zone]), cmp.Compare(w.Zone, zone)) < 0) {
			zone, found = w.Zone, true
		}
	}
	within := make([]Candidate, len(workers))
	copy(within, workers)
	for i := range within {
		within[i].Eligible = within[i].Eligible && within[i].Zone == zone
	}
	return Place(session, within, factor)
}

// zoneLoads counts the sessions of the eligible workers by zone.
func zoneLoads(workers []Candidate) map[string]int {
	loads := map[string]int{}
	for i := range workers {
		if w := &workers[i]; w.Eligible {
			loads[w.Zone] += w.Load
		}
	}
	return loads
}

// shares is the part of all sessions that each worker should have: by capacity,
// and for zone spread the same for each zone and by capacity within it. 0 for
// those that are not eligible.
func shares(policy wire.Placement, workers []Candidate) []float64 {
	zoned := policy == wire.Placement_PLACEMENT_ZONE_SPREAD
	capacity := map[string]float64{}
	for i := range workers {
		if w := &workers[i]; w.Eligible {
			capacity[zoneOf(w, zoned)] += w.weight()
		}
	}
	list := make([]float64, len(workers))
	for i := range workers {
		if w := &workers[i]; w.Eligible {
			list[i] = w.weight() / capacity[zoneOf(w, zoned)] / float64(len(capacity))
		}
	}
	return list
}

func zoneOf(w *Candidate, zoned bool) string {
	if zoned {
		return w.Zone
	}
	return ""
}
