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
	"os"
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
}

func newClient(addrs []string) (*client, error) {
	token, err := adminToken()
	if err != nil {
		return nil, err
	}
	c := &client{token: token}
	for _, a := range addrs {
		a = strings.TrimRight(strings.TrimSpace(a), "/")
		if a == "" {
			continue
		}
		if !strings.Contains(a, "://") {
			a = "http://" + a
		}
		c.addrs = append(c.addrs, a)
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

// final: another try cannot change the answer.
func final(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusBadGateway, http.StatusInternalServerError:
		return false
	default:
		return true
	}
}

// post sends a write until it is answered for good or ctx ends. Its request ID
// makes the repetition safe. ErrUnknownOutcome where a try may have reached a node.
func (c *client) post(ctx context.Context, path, requestID string, body []byte) error {
	wait := 20 * time.Millisecond
	var before error // of the last try that ctx did not end
	reached := false
	for {
		i := c.current.Load()
		status, err := c.try(ctx, c.addrs[int(i)%len(c.addrs)]+path, requestID, body)
		if err == nil || final(status) && status != 0 && !strings.Contains(err.Error(), `"not_leader"`) {
			return err
		}
		reached = reached || !unsent(err)
		if ctx.Err() == nil {
			before = err
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
			return givenUp(ctx.Err(), err, before, reached)
		}
		wait = min(2*wait, time.Second)
	}
}

// givenUp is the error of a write that was not answered for good before its time
// was over, where last is that of the last try.
func givenUp(over, last, before error, reached bool) error {
	if before != nil {
		last = fmt.Errorf("%w, after %w", over, before)
	}
	if !reached {
		return fmt.Errorf("no node could be reached, nothing was written: %w", last)
	}
	return fmt.Errorf("%w: %w", replication.ErrUnknownOutcome, last)
}

// unsent: the request did not get as far as a node.
func unsent(err error) bool {
	var dial *net.OpError
	return errors.As(err, &dial) && dial.Op == "dial"
}

// try sends a write once; status is 0 where no answer came.
func (c *client) try(ctx context.Context, url, requestID string, body []byte) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout+5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Request-Id", requestID)
	c.authorize(req)
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return resp.StatusCode, fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(text))
	}
	return resp.StatusCode, nil
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

// refusal is the error in an answer that is not OK.
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
	if json.Unmarshal(text, &failure) == nil && failure.Error.Code != "" {
		return fmt.Errorf("%s (%s)", failure.Error.Message, failure.Error.Code)
	}
	return fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(text))
}

func exportCommand() *cobra.Command {
	var addr string
	cmd := &cobra.Command{
		Use: "export", Short: "Write the whole graph as APOC JSON lines", Args: exactArgs(0),
		Example: "  nornic-cluster export --addr http://127.0.0.1:7474 > graph.jsonl",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient([]string{addr})
			if err != nil {
				return err
			}
			req, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, c.addrs[0]+"/graph/export", nil)
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
			_, err = io.Copy(os.Stdout, resp.Body)
			return err
		},
	}
	cmd.Flags().StringVar(&addr, "addr", "http://127.0.0.1:7474", "a node's HTTP address")
	return cmd
}
