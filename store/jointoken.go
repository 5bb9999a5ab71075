package store

import (
	"crypto/subtle"
	"slices"
	"strings"

	"github.com/baton-cluster/baton/wire"
)

// joinToken is a JoinToken. Immutable.
//
// Invariant: usedUS is 0 exactly while nobody has used it; one that is revoked
// never was. (Used by two nodes, a stolen token would go unnoticed.)
type joinToken struct {
	id         string
	secretHash []byte
	expiresUS  uint64
	name       string
	by         string
	wallUS     int64
	revoked    bool
	usedUS     uint64
	usedBy     string
	usedKey    []byte
}

// open reports whether the token may be used at log time nowUS.
func (t *joinToken) open(nowUS uint64) bool {
	return t.usedUS == 0 && !t.revoked && nowUS < t.expiresUS
}

func (s *Store) applyMakeJoinToken(c *wire.MakeJoinToken, res *wire.Result) {
	if len(c.GetId()) != wire.IDBytes || len(c.GetSecretHash()) != wire.HashBytes || len(c.GetName()) > labelBytesMax ||
		c.GetLifeUs() == 0 || c.GetLifeUs() > wire.JoinTokenLifeUSMax {
		res.Code = wire.Code_BAD_REQUEST
		return
	}
	at, found := s.findJoinToken(c.GetId())
	switch {
	case found && string(s.joinTokens[at].secretHash) == string(c.GetSecretHash()):
		res.Duplicate = true
		return
	case found:
		res.Code = wire.Code_BAD_REQUEST
		return
	case len(s.joinTokens) >= wire.JoinTokensMax:
		res.Code = wire.Code_TOO_MANY
		return
	}
	s.joinTokens = slices.Insert(slices.Clone(s.joinTokens), at, joinToken{
		id: string(c.GetId()), secretHash: c.GetSecretHash(), expiresUS: saturate(s.timeUS, c.GetLifeUs()),
		name: c.GetName(), by: clip(c.GetBy()), wallUS: s.wallUS,
	})
}

func (s *Store) applyUseJoinToken(c *wire.UseJoinToken, res *wire.Result) {
	if !label(c.GetName()) || len(c.GetKeyHash()) != wire.HashBytes {
		res.Code = wire.Code_BAD_REQUEST
		return
	}
	at, found := s.findJoinToken(c.GetId())
	// A wrong secret must not tell that the id is right.
	if !found || subtle.ConstantTimeCompare(s.joinTokens[at].secretHash, c.GetSecretHash()) != 1 {
		res.Code = wire.Code_TOKEN_UNKNOWN
		return
	}
	t := s.joinTokens[at]
	switch {
	case t.revoked:
		res.Code = wire.Code_TOKEN_REVOKED
	case t.usedUS != 0 && s.timeUS < t.expiresUS && t.usedBy == c.GetName() && string(t.usedKey) == string(c.GetKeyHash()):
		res.Duplicate = true // the node did not get its certificate the first time
	case t.usedUS != 0:
		res.Code = wire.Code_TOKEN_USED
	case s.timeUS >= t.expiresUS:
		res.Code = wire.Code_TOKEN_EXPIRED
	case t.name != "" && t.name != c.GetName():
		res.Code = wire.Code_TOKEN_WRONG_NAME
	case s.nameTaken(c.GetName()):
		res.Code = wire.Code_NAME_IN_USE
	default:
		t.usedUS, t.usedBy, t.usedKey = max(s.timeUS, 1), c.GetName(), c.GetKeyHash()
		s.setJoinToken(at, t)
	}
}

func (s *Store) applyRevokeJoinToken(c *wire.RevokeJoinToken, res *wire.Result) {
	at, found := s.findJoinToken(c.GetId())
	if !found {
		res.Code = wire.Code_TOKEN_UNKNOWN
		return
	}
	t := s.joinTokens[at]
	switch {
	case t.usedUS != 0:
		res.Code = wire.Code_TOKEN_USED
	case t.revoked:
		res.Duplicate = true
	default:
		t.revoked = true
		s.setJoinToken(at, t)
	}
}

// nameTaken reports whether a node of that name lives, or another token was used
// for one: whoever got a second certificate could speak in its name. The name of
// a fenced worker is free, so that a node that was lost can be replaced.
func (s *Store) nameTaken(name string) bool {
	taken := slices.ContainsFunc(s.joinTokens, func(t joinToken) bool {
		return t.usedBy == name && s.timeUS < t.expiresUS
	})
	s.workers.Scan(func(w *worker) bool {
		taken = taken || w.name == name && w.state != wire.WorkerState_WORKER_STATE_FENCED
		return !taken
	})
	return taken
}

// findJoinToken is the token's place, or where it would be.
func (s *Store) findJoinToken(id []byte) (at int, found bool) {
	return slices.BinarySearchFunc(s.joinTokens, string(id), func(t joinToken, id string) int { return strings.Compare(t.id, id) })
}

func (s *Store) setJoinToken(at int, t joinToken) {
	s.joinTokens = slices.Clone(s.joinTokens)
	s.joinTokens[at] = t
}

// sweepJoinTokens forgets the tokens whose memory is over.
func (s *Store) sweepJoinTokens() {
	over := func(t joinToken) bool { return s.timeUS >= saturate(t.expiresUS, wire.JoinTokenMemoryUS) }
	if slices.ContainsFunc(s.joinTokens, over) {
		s.joinTokens = slices.DeleteFunc(slices.Clone(s.joinTokens), over)
	}
}

// JoinTokens lists the tokens on record by id.
func (s *Store) JoinTokens() []*wire.JoinToken {
	var list []*wire.JoinToken
	for i := range s.joinTokens {
		t := &s.joinTokens[i]
		list = append(list, &wire.JoinToken{
			Id: []byte(t.id), SecretHash: t.secretHash, ExpiresUs: t.expiresUS, Name: t.name, By: t.by, WallUs: t.wallUS,
			Revoked: t.revoked, UsedUs: t.usedUS, UsedBy: t.usedBy, UsedKey: t.usedKey,
		})
	}
	return list
}

func (h *hasher) joinTokens(list []joinToken) {
	for i := range list {
		t := &list[i]
		h.str(t.id)
		h.bytes(t.secretHash)
		h.u64(t.expiresUS)
		h.str(t.name)
		h.str(t.by)
		h.u64(uint64(t.wallUS))
		h.flag(t.revoked)
		h.u64(t.usedUS)
		h.str(t.usedBy)
		h.bytes(t.usedKey)
	}
}

// joinTokensOf rebuilds the tokens from a snapshot; not ok if no Apply could have
// made them.
func joinTokensOf(list []*wire.JoinToken) (tokens []joinToken, ok bool) {
	if len(list) > wire.JoinTokensMax {
		return nil, false
	}
	for i, p := range list {
		t := joinToken{
			id: string(p.GetId()), secretHash: p.GetSecretHash(), expiresUS: p.GetExpiresUs(), name: p.GetName(), by: p.GetBy(),
			wallUS: p.GetWallUs(), revoked: p.GetRevoked(), usedUS: p.GetUsedUs(), usedBy: p.GetUsedBy(), usedKey: p.GetUsedKey(),
		}
		used := t.usedUS != 0
		if len(t.id) != wire.IDBytes || len(t.secretHash) != wire.HashBytes || i > 0 && t.id <= tokens[i-1].id ||
			used != (t.usedBy != "") || used != (len(t.usedKey) == wire.HashBytes) || !used && len(t.usedKey) > 0 || used && t.revoked {
			return nil, false
		}
		tokens = append(tokens, t)
	}
	return tokens, true
}
