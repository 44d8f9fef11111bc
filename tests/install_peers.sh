#!/bin/sh
# Install the real peers that the tests talk to, and the browser that looks at the pages, if this is Debian and we are
# root; else say what is missing.
missing=
[ -x /usr/bin/storescu ] || missing="$missing dcmtk"
[ -x /usr/sbin/Orthanc ] || [ -x /usr/sbin/orthanc ] || [ -x /usr/bin/orthanc ] || [ -x /usr/bin/Orthanc ] || missing="$missing orthanc"
[ -e /usr/share/java/pixelmed.jar ] || missing="$missing libpixelmed-java"
[ -x /usr/bin/java ] || missing="$missing default-jre-headless"
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
[ -x /usr/bin/chromium ] || missing="$missing chromium"
ls /usr/share/orthanc/plugins/libOrthancDicomWeb* >/dev/null 2>&1 || missing="$missing orthanc-dicomweb"
[ -x /usr/sbin/rsyslogd ] || missing="$missing rsyslog"
ls /usr/lib/*/rsyslog/lmnsd_gtls.so >/dev/null 2>&1 || missing="$missing rsyslog-gnutls"
[ -x /usr/sbin/ip ] || [ -x /sbin/ip ] || missing="$missing iproute2"
[ -x /usr/sbin/iptables ] || [ -x /sbin/iptables ] || missing="$missing iptables"
[ -x /usr/bin/jing ] || missing="$missing jing"
[ -x /usr/bin/promtool ] || missing="$missing prometheus"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing peers:$missing"
    # A freshly installed Orthanc must not start as a service: the tests start their own.
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing >/dev/null && exit 0
fi
echo "peer programs not installed:$missing; their tests will be skipped by name" >&2
exit 0
