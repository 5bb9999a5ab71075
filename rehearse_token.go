package baton

import (
	"fmt"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/wire"
)

// RehearseToken shows the life of migration tokens and of sealed snapshots, with
// the code and the rules that a cluster uses: minted, active, used, revoked,
// expired, and every way in which they are refused.
func RehearseToken() []RehearsalStep {
	r := &tokenRehearsal{}
	r.step("a session on the first of two workers", func() (_ string, err error) {
		r.stage, err = newStage()
		return "", err
	})
	if r.steps[0].OK {
		r.refusals()
		r.snapshots()
		r.ends()
	}
	return r.steps
}

type tokenRehearsal struct {
	*stage
	steps  []RehearsalStep
	sealed []byte
	digest uint64
}

func (r *tokenRehearsal) step(name string, do func() (string, error)) {
	r.steps = append(r.steps, Rehearse(name, do))
}

// refused presents the token for another use.
func (r *tokenRehearsal) refused(name string, want wire.Code, change func(*migrate.Binding)) {
	r.step(name, func() (string, error) {
		b := r.binding()
		change(&b)
		return refusedAs(want, r.check(b))
	})
}

func (r *tokenRehearsal) refusals() {
	r.step("mint a token of 256 random bits", func() (string, error) {
		if err := r.mint(); err != nil {
			return "", err
		}
		return refusedAs(wire.Code_TOKEN_UNKNOWN, r.check(r.binding()))
	})
	r.step("begin the migration: only the token's hash is in the log", func() (string, error) {
		if err := r.begin(); err != nil {
			return "", err
		}
		return fmt.Sprintf("migration %d", r.m.GetId()), nil
	})
	r.step("the target checks the token, and does not consume it", func() (string, error) {
		if err := r.check(r.binding()); err != nil {
			return "", err
		}
		return "active", r.check(r.binding())
	})
	r.step("a forged token", func() (string, error) {
		real := r.tok
		r.tok[0] ^= 1
		err := r.check(r.binding())
		r.tok = real
		return refusedAs(wire.Code_TOKEN_UNKNOWN, err)
	})
	r.refused("for another session", wire.Code_TOKEN_WRONG_SESSION, func(b *migrate.Binding) { b.Session = "other" })
	r.refused("for another epoch", wire.Code_TOKEN_WRONG_EPOCH, func(b *migrate.Binding) { b.SourceEpoch++ })
	r.refused("at another target", wire.Code_TOKEN_WRONG_TARGET, func(b *migrate.Binding) { b.Target = b.Source })
	r.refused("in another cluster", wire.Code_TOKEN_WRONG_CLUSTER, func(b *migrate.Binding) { b.ClusterID = []byte("another cluster") })
}

func (r *tokenRehearsal) snapshots() {
	r.step("seal the connection state for this migration", func() (_ string, err error) {
		r.sealed, r.digest, err = r.snapshot(stageLiveBytes)
		return fmt.Sprintf("%d bytes", len(r.sealed)), err
	})
	r.step("the target opens it, and finds the same digest", func() (string, error) {
		_, got, err := migrate.Unseal(r.key, r.binding(), r.sealed)
		if err == nil && got != r.digest {
			err = fmt.Errorf("digest %x, sealed with %x", got, r.digest)
		}
		return "", err
	})
	r.step("a snapshot with one bit flipped", func() (string, error) {
		bad := append([]byte(nil), r.sealed...)
		bad[len(bad)/2] ^= 1
		_, _, err := migrate.Unseal(r.key, r.binding(), bad)
		return refusedAs(wire.Code_SNAPSHOT_BAD, err)
	})
	r.step("a snapshot put to another use", func() (string, error) {
		b := r.binding()
		b.SourceEpoch++
		_, _, err := migrate.Unseal(r.key, b, r.sealed)
		return refusedAs(wire.Code_SNAPSHOT_BAD, err)
	})
	r.step("a snapshot over the cap", func() (string, error) {
		_, _, err := r.snapshot(wire.LiveBytesMax + 1)
		return refusedAs(wire.Code_SNAPSHOT_TOO_LARGE, err)
	})
}

func (r *tokenRehearsal) ends() {
	again := func() error {
		if err := r.mint(); err != nil {
			return err
		}
		return r.begin()
	}
	r.step("the pivot commits, and consumes the token", func() (string, error) {
		return "owner " + r.m.GetTarget().GetWorker(), r.pivot(r.digest)
	})
	r.step("the same token again", func() (string, error) { return refusedAs(wire.Code_TOKEN_USED, r.check(r.binding())) })
	r.step("a migration called off revokes its token", func() (string, error) {
		if err := again(); err != nil {
			return "", err
		}
		if _, err := r.apply(&wire.Command{Kind: &wire.Command_Abort{Abort: &wire.AbortMigration{Migration: r.m.GetId(), Reason: "rehearsal"}}}); err != nil {
			return "", err
		}
		return refusedAs(wire.Code_TOKEN_REVOKED, r.check(r.binding()))
	})
	r.step("a migration past its deadline", func() (string, error) {
		if err := again(); err != nil {
			return "", err
		}
		r.nowUS = r.m.GetDeadlineUs() + 1
		return refusedAs(wire.Code_TOKEN_EXPIRED, r.check(r.binding()))
	})
}
