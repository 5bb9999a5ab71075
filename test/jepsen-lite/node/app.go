package main

import (
	"crypto/sha256"
	"encoding"
	"fmt"
	"io"

	"github.com/baton-cluster/baton"
)

// app is what the nodes serve: the product's key→value application, and byte
// streams.
//
//	sum     resumable: hashes what comes, and says the hash; its cookie is the hash's state
//	mirror  resumable: writes back what it reads
//	fragile not resumable: writes back what it reads
func app() *baton.Mux {
	m := baton.KV()
	m.HandleStream("sum", sum, baton.Resumable())
	m.HandleStream("mirror", mirror, baton.Resumable())
	m.HandleStream("fragile", func(st *baton.ServerStream) error {
		_, err := io.Copy(st, st)
		return err
	})
	return m
}

func sum(st *baton.ServerStream) error {
	h := sha256.New()
	if cookie, _ := st.Resumed(); len(cookie) > 0 {
		if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(cookie); err != nil {
			return err
		}
	}
	buf := make([]byte, 4<<10)
	for {
		n, err := st.Read(buf)
		h.Write(buf[:n])
		cookie, merr := h.(encoding.BinaryMarshaler).MarshalBinary()
		if merr != nil {
			return merr
		}
		if aerr := st.Ack(st.ReadOffset(), cookie); aerr != nil {
			return aerr
		}
		if err == io.EOF {
			_, err = fmt.Fprintf(st, "%x", h.Sum(nil))
			return err
		}
		if err != nil {
			return err
		}
	}
}

// mirror acknowledges what it has written back, and no more.
func mirror(st *baton.ServerStream) error {
	buf := make([]byte, 4<<10)
	for {
		n, rerr := st.Read(buf)
		before := st.ReadOffset() - uint64(n)
		w, werr := st.Write(buf[:n])
		if err := st.Ack(before+uint64(w), nil); err != nil {
			return err
		}
		switch {
		case rerr == io.EOF && werr == nil:
			return nil
		case rerr != nil:
			return rerr
		case werr != nil:
			return werr
		}
	}
}
