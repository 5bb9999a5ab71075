package fsm

// ringSize is how many entries back replicas can be compared: enough for a
// follower that is a few seconds behind a busy leader.
const ringSize = 4096

// ring holds the state hash after each of the last entries, so that nodes can be
// compared at an index that all of them have passed.
type ring struct {
	points [ringSize]point
	next   int // slot of the next one
	len    int
}

type point struct{ index, hash uint64 }

func (r *ring) reset() { r.next, r.len = 0, 0 }

// add appends a point. Indexes rise.
func (r *ring) add(p point) {
	r.points[r.next] = p
	r.next = (r.next + 1) % ringSize
	r.len = min(r.len+1, ringSize)
}

// at returns the i-th point, 0 being the oldest.
func (r *ring) at(i int) point {
	return r.points[(r.next-r.len+i+ringSize)%ringSize]
}

// find returns the last point at or before index. Not ok: index is after the
// newest point (it has not happened here) or before the oldest.
func (r *ring) find(index uint64) (point, bool) {
	if r.len == 0 || index > r.at(r.len-1).index || index < r.at(0).index {
		return point{}, false
	}
	lo, hi := 0, r.len-1 // at(lo).index <= index
	for lo < hi {
		mid := (lo + hi + 1) / 2
		if r.at(mid).index <= index {
			lo = mid
		} else {
			hi = mid - 1
		}
	}
	return r.at(lo), true
}
