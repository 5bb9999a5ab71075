package store

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/baton-cluster/baton/wire"
)

// The twin's join tokens.

func (w *twin) joinToken(id []byte) *wire.JoinToken {
	for _, t := range w.cluster.JoinTokens {
		if bytes.Equal(t.Id, id) {
			return t
		}
	}
	return nil
}

func (w *twin) makeJoinToken(c *wire.MakeJoinToken) *wire.Result {
	if c.LifeUs == 0 || c.LifeUs > 31*24*3600*1_000_000 {
		return code(wire.Code_BAD_REQUEST)
	}
	if w.joinToken(c.Id) != nil {
		return &wire.Result{Duplicate: true}
	}
	w.cluster.JoinTokens = append(w.cluster.JoinTokens, &wire.JoinToken{
		Id: c.Id, SecretHash: c.SecretHash, ExpiresUs: w.cluster.TimeUs + c.LifeUs, Name: c.Name, By: c.By, WallUs: w.wall,
	})
	slices.SortFunc(w.cluster.JoinTokens, func(a, b *wire.JoinToken) int { return cmp.Compare(string(a.Id), string(b.Id)) })
	return code(wire.Code_OK)
}

func (w *twin) useJoinToken(c *wire.UseJoinToken) *wire.Result {
	t := w.joinToken(c.Id)
	if t == nil || !bytes.Equal(t.SecretHash, c.SecretHash) {
		return code(wire.Code_TOKEN_UNKNOWN)
	}
	over := t.ExpiresUs <= w.cluster.TimeUs
	if t.Revoked {
		return code(wire.Code_TOKEN_REVOKED)
	}
	if t.UsedUs != 0 {
		if !over && t.UsedBy == c.Name && bytes.Equal(t.UsedKey, c.KeyHash) {
			return &wire.Result{Duplicate: true}
		}
		return code(wire.Code_TOKEN_USED)
	}
	if over {
		return code(wire.Code_TOKEN_EXPIRED)
	}
	if t.Name != "" && t.Name != c.Name {
		return code(wire.Code_TOKEN_WRONG_NAME)
	}
	for _, other := range w.cluster.JoinTokens {
		if other.UsedBy == c.Name && other.ExpiresUs > w.cluster.TimeUs {
			return code(wire.Code_NAME_IN_USE)
		}
	}
	for _, r := range w.workers {
		if r.Name == c.Name && r.State != wire.WorkerState_WORKER_STATE_FENCED {
			return code(wire.Code_NAME_IN_USE)
		}
	}
	t.UsedUs, t.UsedBy, t.UsedKey = max(1, w.cluster.TimeUs), c.Name, c.KeyHash
	return code(wire.Code_OK)
}

func (w *twin) revokeJoinToken(c *wire.RevokeJoinToken) *wire.Result {
	t := w.joinToken(c.Id)
	switch {
	case t == nil:
		return code(wire.Code_TOKEN_UNKNOWN)
	case t.UsedUs != 0:
		return code(wire.Code_TOKEN_USED)
	case t.Revoked:
		return &wire.Result{Duplicate: true}
	}
	t.Revoked = true
	return code(wire.Code_OK)
}

func (w *twin) dropJoinTokens() {
	const day = 24 * 3600 * 1_000_000
	w.cluster.JoinTokens = slices.DeleteFunc(w.cluster.JoinTokens, func(t *wire.JoinToken) bool { return t.ExpiresUs+day <= w.cluster.TimeUs })
}
