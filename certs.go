package baton

import (
	"time"

	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/seam"
)

const (
	// certEvery is how often a node looks whether its certificate was renewed: an
	// operator who copied one waits for no more than this.
	certEvery = time.Minute
	// certWarning is how long before its end a certificate is warned of, each day.
	certWarning      = 30 * 24 * time.Hour
	certWarningEvery = 24 * time.Hour
)

// watchCertificate takes up a renewed certificate without a restart, and says in
// time that one is needed.
func (n *Node) watchCertificate() {
	w := certWatch{n: n}
	for {
		w.look()
		if seam.Sleep(n.ctx, n.cfg.Clock, certEvery) != nil {
			return
		}
	}
}

type certWatch struct {
	n      *Node
	told   string        // the last error, told once
	warned time.Duration // when the end was last warned of; 0: never
}

func (w *certWatch) look() {
	log := w.n.cfg.Log
	renewed, err := w.n.identity.Refresh()
	switch {
	case err == nil:
		w.told = ""
	case err.Error() != w.told:
		w.told = err.Error()
		log.Warn("the certificate on disk is of no use; the one that was loaded is used on", "err", err)
	}
	leaf, authority := w.n.identity.NotAfter()
	if renewed {
		w.warned = 0
		log.Info("the certificate was renewed", "until", leaf)
	}
	now := w.n.cfg.Clock.Now()
	if w.warned != 0 && now-w.warned < certWarningEvery {
		return
	}
	wall := w.n.cfg.Clock.Wall()
	if leaf.Sub(wall) < certWarning {
		log.Warn("the node's certificate ends: run `baton pki renew` where the authority's key is, and copy "+w.n.cfg.Name+".crt here", "at", leaf)
		w.warned = now
	}
	if authority.Sub(wall) < certWarning {
		log.Warn("the authority's certificate ends, and with it the cluster: make a new one and move to it", "at", authority)
		w.warned = now
	}
}

// certFault says that no connection can be made any more.
func (n *Node) certFault() []Fault {
	leaf, authority := n.identity.NotAfter()
	end := leaf
	if authority.Before(end) {
		end = authority
	}
	if n.cfg.Clock.Wall().Before(end) {
		return nil
	}
	return []Fault{{"certificate_expired", "the node's certificate ended at " + end.UTC().Format(time.RFC3339) +
		": run `baton pki renew` where the authority's key is, and copy " + n.cfg.Name + ".crt here"}}
}

// PKIRenew issues the certificates of the named nodes in dir anew, those of all
// nodes and the operator's where none is named, for the same keys. A node that
// finds its renewed certificate in the place of the former one takes it up within a
// minute, without a restart.
func PKIRenew(dir string, names ...string) error { return pki.Renew(dir, names...) }
