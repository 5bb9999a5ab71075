package baton

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// verify compares, over all nodes that can be reached, the hashes of the
// replicated state at one index, and what each remembers of having served.
func (n *Node) verify(ctx context.Context) (Verdict, error) {
	if err := n.current(ctx); err != nil {
		return Verdict{}, err
	}
	v := Verdict{Violations: []string{}, Unreachable: []string{}}
	servings, unreachable := n.gatherServings(ctx)
	v.Unreachable = append(v.Unreachable, unreachable...)
	checkServings(&v, servings)
	n.checkHistory(&v, servings)
	if err := n.compareHashes(ctx, &v); err != nil {
		return Verdict{}, err
	}
	v.OK = len(v.Violations) == 0
	return v, nil
}

func (n *Node) gatherServings(ctx context.Context) (all []Serving, unreachable []string) {
	all = []Serving{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, w := range n.allWorkers() {
		wg.Go(func() {
			got, err := n.servingsOf(ctx, w)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				unreachable = append(unreachable, w.GetName())
				return
			}
			all = append(all, got...)
		})
	}
	wg.Wait()
	slices.SortFunc(all, func(a, b Serving) int {
		return cmp.Or(cmp.Compare(a.Session, b.Session), cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.First, b.First))
	})
	return all, unreachable
}

// servingsReq asks a node for its intervals of those sessions whose hash falls to Part
// of Parts: all of a large node's do not fit one answer.
type servingsReq struct {
	Part  uint64 `json:"part"`
	Parts uint64 `json:"parts"` // 0 and 1: one part
}

// servings is what this node's worker remembers of having served.
func (n *Node) servings(req servingsReq) []Serving {
	out := []Serving{}
	for _, s := range n.worker.Servings() {
		if req.Parts > 1 && xxhash.Sum64String(s.Session)%req.Parts != req.Part {
			continue
		}
		out = append(out, Serving{
			Session: s.Session, Epoch: s.Epoch, Worker: n.cfg.Name, Incarnation: s.Incarnation,
			First: s.First, Last: s.Last, Active: s.Active,
		})
	}
	return out
}

const (
	// servingsPart is about how many of a node's sessions one part is of.
	servingsPart = 1 << 14
	// servingsPartsMax bounds how finely a node's intervals are parted: no session's
	// fill an answer.
	servingsPartsMax = 1 << 12
)

// servingsOf brings a worker's intervals, in as many parts as are needed.
func (n *Node) servingsOf(ctx context.Context, w *wire.WorkerRow) ([]Serving, error) {
	if w.GetId() == n.id {
		return n.servings(servingsReq{}), nil
	}
	owned := 0
	n.cluster.FSM().View(func(st *store.Store) { owned = st.Counts().Owned[w.GetId()] })
	for parts := uint64(1 + owned/servingsPart); ; parts *= 2 {
		all, err := n.servingsIn(ctx, w, parts)
		if wire.CodeOf(err) != wire.Code_REPLY_TOO_LARGE || parts >= servingsPartsMax {
			return all, err
		}
	}
}

func (n *Node) servingsIn(ctx context.Context, w *wire.WorkerRow, parts uint64) (all []Serving, err error) {
	for part := range parts {
		body, err := marshal(servingsReq{Part: part, Parts: parts})
		if err != nil {
			return nil, err
		}
		call, cancel := context.WithTimeout(ctx, gatherTime)
		body, err = n.peers.Call(call, mgmtAddr(w), callServings, body)
		cancel()
		if err != nil {
			return nil, err
		}
		var got []Serving
		if err := json.Unmarshal(body, &got); err != nil {
			return nil, err
		}
		all = append(all, got...)
	}
	return all, nil
}

// checkServings looks for two owners of one epoch, and for an epoch that served
// after the next one began. Positions in the log are the clock. servings are
// sorted by session, epoch and first position.
func checkServings(v *Verdict, servings []Serving) {
	v.Checked = len(servings)
	var latest Serving // of the session's earlier epochs, the one that served last
	var epoch Serving  // of the epoch at hand, likewise
	for _, s := range servings {
		switch {
		case s.Session != epoch.Session:
			latest, epoch = Serving{}, s
			continue
		case s.Epoch != epoch.Epoch:
			if epoch.Last > latest.Last {
				latest = epoch
			}
			epoch = s
		case s.Worker != epoch.Worker || s.Incarnation != epoch.Incarnation:
			v.DoubleOwned++
			v.Violations = append(v.Violations, fmt.Sprintf("session %q has two owners in epoch %d: %s and %s", s.Session, s.Epoch, epoch.Worker, s.Worker))
		}
		if latest.Last >= s.First {
			v.Overlaps++
			v.Violations = append(v.Violations, fmt.Sprintf("session %q: epoch %d on %s served up to position %d, epoch %d on %s from %d",
				s.Session, latest.Epoch, latest.Worker, latest.Last, s.Epoch, s.Worker, s.First))
		}
		if s.Last > epoch.Last {
			epoch = s
		}
	}
}

// checkHistory holds what the nodes served against who owned it by the log.
func (n *Node) checkHistory(v *Verdict, servings []Serving) {
	owners := map[string]map[uint64]*wire.Owner{}
	for _, s := range servings {
		byEpoch, known := owners[s.Session]
		if !known {
			byEpoch = map[uint64]*wire.Owner{}
			n.cluster.FSM().View(func(st *store.Store) {
				for _, h := range st.Row(s.Session).GetHistory() {
					byEpoch[h.GetEpoch()] = h.GetOwner()
				}
			})
			owners[s.Session] = byEpoch
		}
		if o := byEpoch[s.Epoch]; o != nil && (o.GetIncarnation() != s.Incarnation || n.workerName(o.GetWorker()) != s.Worker) {
			v.DoubleOwned++
			v.Violations = append(v.Violations, fmt.Sprintf("session %q: %s served epoch %d, which the log gave to %s",
				s.Session, s.Worker, s.Epoch, n.workerName(o.GetWorker())))
		}
	}
}

// hashRounds bounds how often a node that is behind the index chosen is asked.
const (
	hashRounds = 50
	hashWait   = 20 * time.Millisecond
)

// compareHashes has all reachable nodes tell their hash at this node's newest
// index, all at once: they remember it for a while only.
func (n *Node) compareHashes(ctx context.Context, v *Verdict) error {
	own, err := n.stateHash(0)
	if err != nil {
		return err
	}
	v.Index = own.GetIndex()
	workers := n.allWorkers()
	hashes := make([]*wire.StateHashResp, len(workers)) // nil: not had
	var wg sync.WaitGroup
	for i, w := range workers {
		wg.Go(func() {
			if resp, err := n.hashOf(ctx, w, own.GetIndex()); err == nil {
				hashes[i] = resp
			}
		})
	}
	wg.Wait()
	for i, w := range workers {
		resp := hashes[i]
		if resp == nil {
			if !slices.Contains(v.Unreachable, w.GetName()) {
				v.Unreachable = append(v.Unreachable, w.GetName())
			}
			continue
		}
		v.Hashes = append(v.Hashes, StateHash{Node: w.GetName(), Index: resp.GetIndex(), Hash: fmt.Sprintf("%016x", resp.GetHash())})
		if resp.GetHash() != own.GetHash() {
			v.Violations = append(v.Violations, fmt.Sprintf("the replicated state of %s differs at index %d", w.GetName(), own.GetIndex()))
		}
	}
	return nil
}

func (n *Node) hashOf(ctx context.Context, w *wire.WorkerRow, index uint64) (*wire.StateHashResp, error) {
	if w.GetId() == n.id {
		return n.stateHash(index)
	}
	var err error
	for range hashRounds {
		resp := &wire.StateHashResp{}
		call, cancel := context.WithTimeout(ctx, gatherTime)
		err = rpcnet.Invoke(call, n.peers, mgmtAddr(w), callHash, &wire.StateHashReq{Index: index}, resp)
		cancel()
		if wire.CodeOf(err) != wire.Code_RETRY {
			return resp, err
		}
		if err := seam.Sleep(ctx, n.cfg.Clock, hashWait); err != nil {
			return nil, err
		}
	}
	return nil, err
}
