package store

import (
	"slices"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// keyRetentionUS is wire.KeyRetention in log time.
const keyRetentionUS = uint64(wire.KeyRetention / time.Microsecond)

// generation is a KeyGeneration. Immutable, but for replacedUS while applying.
//
// Invariant: replacedUS is 0 exactly while the generation is the newest of one of
// its kinds; such a one is never dropped.
type generation struct {
	number     uint64
	root       []byte // wrapped: the store could not use it if it would
	nonce      []byte
	kinds      uint32
	madeUS     uint64
	wallUS     int64
	by         string
	replacedUS uint64
}

// applyRotateKeys begins a generation. The first one makes generation 0, which
// was the only one until then and is not on record, a replaced one.
func (s *Store) applyRotateKeys(c *wire.RotateKeys, res *wire.Result) {
	kinds := c.GetKinds()
	if kinds == 0 {
		kinds = wire.KeyKindsAll
	}
	if !label(string(c.GetNonce())) || len(c.GetRoot()) != wire.WrappedRootBytes || kinds&^wire.KeyKindsAll != 0 {
		res.Code = wire.Code_BAD_REQUEST
		return
	}
	for i := range s.keys {
		if string(s.keys[i].nonce) == string(c.GetNonce()) {
			res.Duplicate, res.Epoch = true, s.keys[i].number
			return
		}
	}
	keys := slices.Clone(s.keys)
	if len(keys) == 0 {
		keys = append(keys, generation{kinds: wire.KeyKindsAll})
	}
	newest := keys[len(keys)-1].number
	// The root was wrapped for this number: what two leaders made at once must
	// not both get it.
	if c.GetGeneration() != newest+1 {
		res.Code, res.Current = wire.Code_KEYS_ROTATED, newest
		return
	}
	res.Epoch = newest + 1
	keys = append(keys, generation{
		number: res.Epoch, root: c.GetRoot(), nonce: c.GetNonce(), kinds: kinds,
		madeUS: s.timeUS, wallUS: s.wallUS, by: clip(c.GetBy()),
	})
	for i := range keys {
		if keys[i].replacedUS == 0 && !isNewest(keys, i) {
			keys[i].replacedUS = max(s.timeUS, 1)
		}
	}
	if len(keys) > wire.KeyGenerationsMax {
		oldest := slices.IndexFunc(keys, func(g generation) bool { return g.replacedUS != 0 })
		keys = slices.Delete(keys, oldest, oldest+1)
	}
	s.keys = keys
	s.emit(Event{Kind: EventKeys})
}

// isNewest reports whether keys[at] is the newest of one of its kinds.
func isNewest(keys []generation, at int) bool {
	kinds := keys[at].kinds
	for _, later := range keys[at+1:] {
		kinds &^= later.kinds
	}
	return kinds != 0
}

// sweepKeys drops the generations whose time is over.
func (s *Store) sweepKeys() {
	until, ok := s.KeysUntil()
	if !ok || s.timeUS < until {
		return
	}
	s.keys = slices.DeleteFunc(slices.Clone(s.keys), func(g generation) bool {
		return g.replacedUS != 0 && s.timeUS >= saturate(g.replacedUS, keyRetentionUS)
	})
	s.emit(Event{Kind: EventKeys})
}

// KeysUntil is the log time at which the next generation of keys is dropped; ok
// is false if none has been replaced.
func (s *Store) KeysUntil() (us uint64, ok bool) {
	for i := range s.keys {
		if r := s.keys[i].replacedUS; r != 0 && (!ok || saturate(r, keyRetentionUS) < us) {
			us, ok = saturate(r, keyRetentionUS), true
		}
	}
	return us, ok
}

// Keys is the key ring by rising generation; none: generation 0 is all there is.
func (s *Store) Keys() []*wire.KeyGeneration {
	var list []*wire.KeyGeneration
	for i := range s.keys {
		g := &s.keys[i]
		list = append(list, &wire.KeyGeneration{
			Generation: g.number, Root: g.root, Nonce: g.nonce, Kinds: g.kinds,
			MadeUs: g.madeUS, WallUs: g.wallUS, By: g.by, ReplacedUs: g.replacedUS,
		})
	}
	return list
}

func (h *hasher) keys(keys []generation) {
	for i := range keys {
		g := &keys[i]
		h.u64(g.number)
		h.bytes(g.root)
		h.bytes(g.nonce)
		h.u64(uint64(g.kinds))
		h.u64(g.madeUS)
		h.u64(uint64(g.wallUS))
		h.str(g.by)
		h.u64(g.replacedUS)
	}
}

// ringOf rebuilds the ring from a snapshot; not ok if no Apply could have made it.
func ringOf(list []*wire.KeyGeneration) (keys []generation, ok bool) {
	if len(list) > wire.KeyGenerationsMax {
		return nil, false
	}
	for i, p := range list {
		g := generation{
			number: p.GetGeneration(), root: p.GetRoot(), nonce: p.GetNonce(), kinds: p.GetKinds(),
			madeUS: p.GetMadeUs(), wallUS: p.GetWallUs(), by: p.GetBy(), replacedUS: p.GetReplacedUs(),
		}
		size := wire.WrappedRootBytes
		if g.number == 0 {
			size = 0
		}
		if len(g.root) != size || g.kinds == 0 || g.kinds&^wire.KeyKindsAll != 0 || i > 0 && g.number <= keys[i-1].number {
			return nil, false
		}
		keys = append(keys, g)
	}
	for i := range keys {
		if isNewest(keys, i) != (keys[i].replacedUS == 0) {
			return nil, false
		}
	}
	return keys, len(keys) == 0 || keys[len(keys)-1].number > 0
}
