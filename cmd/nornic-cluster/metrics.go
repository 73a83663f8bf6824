package main

import (
	"net/http"
	"sync"

	metrics "github.com/hashicorp/go-metrics/compat"
	sink "github.com/hashicorp/go-metrics/compat/prometheus"
	"github.com/nornicdb/replication/internal/report"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// serviceName stands before the name of every metric.
const serviceName = "nornicdb"

// metricsRegistry makes the one sink of this process, to which hashicorp/raft
// reports too. Counters are there from the start, at zero; nothing expires.
var metricsRegistry = sync.OnceValues(func() (*prometheus.Registry, error) {
	registry := prometheus.NewRegistry()
	opts := sink.PrometheusOpts{Registerer: registry, Expiration: 0}
	for _, c := range report.Counters() {
		for _, labels := range labelSets(&c) {
			opts.CounterDefinitions = append(opts.CounterDefinitions, sink.CounterDefinition{Name: fullName(&c), ConstLabels: labels})
		}
	}
	for _, s := range report.Summaries() {
		opts.SummaryDefinitions = append(opts.SummaryDefinitions, sink.SummaryDefinition{Name: fullName(&s)})
	}
	s, err := sink.NewPrometheusSinkFrom(opts)
	if err != nil {
		return nil, err
	}
	cfg := metrics.DefaultConfig(serviceName)
	cfg.EnableHostname, cfg.EnableRuntimeMetrics = false, false
	if _, err := metrics.NewGlobal(cfg, s); err != nil {
		return nil, err
	}
	if err := registry.Register(collectors.NewGoCollector()); err != nil {
		return nil, err
	}
	return registry, registry.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
})

func fullName(n *report.Name) []string { return append([]string{serviceName}, n.Key...) }

// labelSets are those under which a metric is known to be reported.
func labelSets(n *report.Name) [][]metrics.Label {
	if n.Label == "" {
		return [][]metrics.Label{nil}
	}
	var sets [][]metrics.Label
	for _, v := range n.Values {
		sets = append(sets, []metrics.Label{{Name: n.Label, Value: v}})
	}
	return sets
}

// metricsHandler serves the sink as Prometheus text, after this node's gauges
// were refreshed. The nodes of a demo share their process's sink: the gauges are
// those of the node that was asked, the counters those of all.
func (n *node) metricsHandler() (http.Handler, error) {
	registry, err := metricsRegistry()
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var gauges report.Gauges
	text := promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		gauges.Report(n.repl.Health())
		mu.Unlock()
		text.ServeHTTP(w, r)
	}), nil
}
