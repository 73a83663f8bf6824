package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nornicdb/replication"
	"github.com/spf13/cobra"
)

// client talks to any of several nodes: the one that answered last is asked
// first.
type client struct {
	http    http.Client
	addrs   []string
	token   string // "": none is sent
	current atomic.Int64
	retries atomic.Int64
	failing atomic.Pointer[error] // of the last try of a write that was tried again
}

func newClient(addrs []string) (*client, error) {
	token, err := adminToken()
	if err != nil {
		return nil, err
	}
	c := &client{token: token}
	for _, a := range addrs {
		a = strings.TrimSpace(a)
		if a == "" {
			continue
		}
		if !strings.Contains(a, "://") {
			a = "http://" + a
		}
		if u, err := url.Parse(a); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Contains(a, ",") {
			return nil, fmt.Errorf("%w: --addr: %q is not the http address of one node", errUsage, a)
		}
		c.addrs = append(c.addrs, strings.TrimRight(a, "/"))
	}
	if len(c.addrs) == 0 {
		return nil, fmt.Errorf("%w: --addr names no node", errUsage)
	}
	return c, nil
}

// authorize adds the bearer token.
func (c *client) authorize(req *http.Request) {
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
}

// answer is what a node answered that is not OK.
type answer struct {
	status int
	code   string // of the error in the body; empty where there is none
	text   string
}

func (a *answer) Error() string { return a.text }

// final: another try cannot change the answer.
func (a *answer) final() bool {
	switch a.status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusBadGateway, http.StatusInternalServerError:
		return false
	default:
		return a.code != "not_leader"
	}
}

// atTheDoor: the node looked at the request and not at what became of earlier tries
// of it.
func (a *answer) atTheDoor() bool {
	switch a.status {
	// A bad request, too: nodes of other versions need not take the same, and one that
	// came in part is another.
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusMethodNotAllowed, http.StatusRequestEntityTooLarge, http.StatusNotImplemented:
		return true
	default:
		return a.code == ""
	}
}

// noEffect are the codes of refusals that are not final and say that the try which
// is answered changes nothing.
var noEffect = []string{"not_leader", "no_leader", "not_ready", "no_lease", "overloaded", "timeout", "clock_skew"}

// open: the try may have an effect.
func open(err error) bool {
	var a *answer
	if errors.As(err, &a) {
		return !slices.Contains(noEffect, a.code) && !(a.final() && a.atTheDoor())
	}
	return !unsent(err)
}

// post sends a write until it is answered for good or ctx ends. Its request ID
// makes the repetition safe. ErrUnknownOutcome where a try may have had an effect.
func (c *client) post(ctx context.Context, path, requestID string, body []byte) error {
	wait := 20 * time.Millisecond
	var before error // of the last try that ctx did not end
	opened, reached := false, false
	for {
		i := c.current.Load()
		err := c.try(ctx, c.addrs[int(i)%len(c.addrs)]+path, requestID, body)
		var a *answer
		if err == nil {
			return nil
		}
		if errors.As(err, &a) && a.final() {
			if opened && a.atTheDoor() {
				return fmt.Errorf("%w: an earlier try was not answered, and then: %w", replication.ErrUnknownOutcome, err)
			}
			return err
		}
		opened, reached = opened || open(err), reached || !unsent(err)
		if ctx.Err() == nil {
			before = err
			c.failing.Store(&err)
			c.retries.Add(1)
			c.current.CompareAndSwap(i, i+1)
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
			}
		}
		if ctx.Err() != nil {
			return givenUp(ctx.Err(), err, before, opened, reached)
		}
		wait = min(2*wait, time.Second)
	}
}

// givenUp is the error of a write that was not answered for good before its time
// was over, where last is that of the last try.
func givenUp(over, last, before error, opened, reached bool) error {
	if before != nil {
		last = fmt.Errorf("%w, after %w", over, before)
	}
	switch {
	case opened:
		return fmt.Errorf("%w: %w", replication.ErrUnknownOutcome, last)
	case reached:
		return fmt.Errorf("no node took the write, nothing was written: %w", last)
	}
	return fmt.Errorf("no node could be reached, nothing was written: %w", last)
}

// unsent: the request did not get as far as a node.
func unsent(err error) bool {
	var dial *net.OpError
	return errors.As(err, &dial) && dial.Op == "dial"
}

// try sends a write once. What a node answers that is not OK is an *answer.
func (c *client) try(ctx context.Context, url, requestID string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout+5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Request-Id", requestID)
	c.authorize(req)
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		_, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
		return err
	}
	return refusal(resp)
}

// get reads a JSON answer of one node, which has status OK or one of also.
func get(ctx context.Context, url string, v any, also ...int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && !slices.Contains(also, resp.StatusCode) {
		return fmt.Errorf("%s: %w", url, refusal(resp))
	}
	return json.NewDecoder(io.LimitReader(resp.Body, 16<<20)).Decode(v)
}

// refusal is the error in an answer that is not OK: an *answer, if it came whole.
func refusal(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("%s: %w", resp.Status, err)
	}
	var failure struct {
		Error struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	a := &answer{status: resp.StatusCode}
	if json.Unmarshal(text, &failure) == nil && failure.Error.Code != "" {
		a.code, a.text = failure.Error.Code, fmt.Sprintf("%s (%s)", failure.Error.Message, failure.Error.Code)
	} else {
		a.text = fmt.Sprintf("%s: %s", resp.Status, bytes.TrimSpace(text))
	}
	return a
}

func exportCommand() *cobra.Command {
	var addr, level string
	cmd := &cobra.Command{
		Use: "export", Short: "Write the whole graph as APOC JSON lines", Args: exactArgs(0),
		Example: "  nornic-cluster export --addr http://127.0.0.1:7474 > graph.jsonl",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient([]string{addr})
			if err != nil {
				return err
			}
			from := c.addrs[0] + "/graph/export"
			if level != "" {
				from += "?consistency=" + url.QueryEscape(level)
			}
			req, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, from, nil)
			if err != nil {
				return err
			}
			resp, err := c.http.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("export: %w", refusal(resp))
			}
			_, err = io.Copy(cmd.OutOrStdout(), resp.Body)
			return err
		},
	}
	cmd.Flags().StringVar(&addr, "addr", "http://127.0.0.1:7474", "a node's HTTP address")
	cmd.Flags().StringVar(&level, "consistency", "", "how new the graph must be (QUORUM, ONE, …); the node's READ_CONSISTENCY without it")
	return cmd
}
