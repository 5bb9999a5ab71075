package store

import (
	"bytes"
	"slices"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// The twin's key ring.

// newestOf is the highest generation that has kind.
func (w *twin) newestOf(kind uint32) (n uint64) {
	for _, k := range w.cluster.Keys {
		if k.Kinds&kind != 0 {
			n = k.Generation
		}
	}
	return n
}

func (w *twin) rotateKeys(c *wire.RotateKeys) *wire.Result {
	if len(c.Root) != 60 || c.Kinds > 7 {
		return code(wire.Code_BAD_REQUEST)
	}
	var newest uint64
	for _, k := range w.cluster.Keys {
		if bytes.Equal(k.Nonce, c.Nonce) {
			return &wire.Result{Duplicate: true, Epoch: k.Generation}
		}
		newest = k.Generation
	}
	if c.Generation != newest+1 {
		return &wire.Result{Code: wire.Code_KEYS_ROTATED, Current: newest}
	}
	if newest == 0 {
		w.cluster.Keys = []*wire.KeyGeneration{{Kinds: 7}}
	}
	if c.Kinds == 0 {
		c.Kinds = 7
	}
	w.cluster.Keys = append(w.cluster.Keys, &wire.KeyGeneration{
		Generation: c.Generation, Root: c.Root, Nonce: c.Nonce, Kinds: c.Kinds, MadeUs: w.cluster.TimeUs, WallUs: w.wall, By: c.By,
	})
	inUse := []uint64{w.newestOf(1), w.newestOf(2), w.newestOf(4)}
	for _, k := range w.cluster.Keys {
		if k.ReplacedUs == 0 && !slices.Contains(inUse, k.Generation) {
			k.ReplacedUs = max(1, w.cluster.TimeUs)
		}
	}
	for i, k := range w.cluster.Keys {
		if len(w.cluster.Keys) > 8 && k.ReplacedUs > 0 {
			w.cluster.Keys = slices.Delete(w.cluster.Keys, i, i+1)
			break
		}
	}
	return &wire.Result{Epoch: c.Generation}
}

func (w *twin) dropKeys() {
	week := uint64(7 * 24 * time.Hour / time.Microsecond)
	w.cluster.Keys = slices.DeleteFunc(w.cluster.Keys, func(k *wire.KeyGeneration) bool {
		return k.ReplacedUs > 0 && k.ReplacedUs+week <= w.cluster.TimeUs
	})
}
